"""``causerie serve``: the server, and what it says when it starts."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from causerie.cli.options import load, model_argument, setting_options
from causerie.cli.terminal import tell

if TYPE_CHECKING:
    from causerie.chat.service import ChatService
    from causerie.config import Settings


@click.command()
@setting_options()
@model_argument
def serve(model: dict[str, str], flags: dict[str, Any], config: Path | None) -> None:
    """Serve a model over HTTP, WebSocket and the OpenAI API.

    MODEL is a hub id (org/repo, or org/repo:Q4_K_M for one GGUF of it), a local folder or a local .gguf file.
    Without one it is the default model, SmolLM2-135M-Instruct, which is fetched once: good for a first run,
    not for its prose.

    \b
    Examples:
      causerie serve
      causerie serve --port 9000 --max-batch-size 16
      causerie serve Qwen/Qwen2.5-1.5B-Instruct-GGUF:Q4_K_M
      causerie serve --config causerie.yaml
      causerie serve --host 0.0.0.0 --api-keys-file keys.txt        (causerie keys --help)
      causerie serve --engine scripted              (no model: for building an interface)

    \b
    Then, from another terminal:
      curl -N -d "Why is the sky blue?" http://localhost:8000/
      causerie chat --server localhost:8000
      any OpenAI client, with base_url http://localhost:8000/v1

    Ctrl-C or SIGTERM lets running answers finish until --shutdown-deadline; a second one ends at once.
    """
    settings = load({**flags, **model}, config)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    from causerie.chat.build import build_service
    from causerie.models.progress import StderrProgress
    from causerie.web.server import serve as run

    def factory() -> ChatService:
        service = build_service(settings, progress=StderrProgress())
        _introduce(service)
        return service

    run(factory, settings, on_ready=functools.partial(_invite, settings))


def _introduce(service: ChatService) -> None:
    """Before the weights are loaded, which takes seconds."""
    info = service.info
    tell(f"model: {service.model_name} (context window: {info.context_window} tokens)")
    sequences = min(info.max_sequences, service.settings.max_batch_size)
    tell(f"engine: {info.name} ({service.engine_reason}; at once: {sequences} sequences, {info.kv_tokens} tokens)")


def _invite(settings: Settings, url: str) -> None:
    """Once requests are answered, and the store is open."""
    from causerie.chat.stores import place_of

    header = ' -H "Authorization: Bearer $CAUSERIE_API_KEY"' if settings.has_keys else ""
    tell(f"responses are kept in {place_of(settings.store, port=settings.port)}")
    tell(f"url: {url} (OpenAI API: {url}/v1)")
    tell(f"try: curl -N{header} -d 'Why is the sky blue?' {url}/")
