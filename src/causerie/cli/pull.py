"""``causerie pull``: fetch a model and make it ready, so that the first answer need not wait for it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from causerie.cli.options import load, model_argument, setting_options


@click.command()
@setting_options("engine", "precision")
@model_argument
def pull(model: dict[str, str], flags: dict[str, Any], config: Path | None) -> None:
    """Fetch a model and make it ready to serve.

    MODEL is a hub id (org/repo, or org/repo:Q4_K_M for one GGUF of it), a local folder or a local .gguf file.
    Without one it is the default model, SmolLM2-135M-Instruct. What is there already is not fetched again.

    \b
    Examples:
      causerie pull
      causerie pull Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M
      causerie pull microsoft/DialoGPT-small        (needs the extra [transformers])

    Next: causerie serve, with the same MODEL.
    """
    settings = load({**flags, **model}, config)
    from causerie.models.precision import PRECISIONS
    from causerie.models.progress import StderrProgress
    from causerie.models.resolve import resolve

    form = PRECISIONS[settings.precision].form
    folder = resolve(settings.model, form=form, engine=settings.engine, progress=StderrProgress())
    command = ["causerie", "serve", *model.values()]
    command += [f"--{name}={value}" for name, value in flags.items()]
    click.echo(f"{folder.name} is ready: {_size(folder.path)} of {folder.format} ({folder.architecture}) in")
    click.echo(f"  {folder.path}")
    click.echo(f"Serve it:  {shlex.join(command)}")


def _size(folder: Path) -> str:
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.0f} MB"
