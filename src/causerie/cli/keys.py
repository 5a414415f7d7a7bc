"""``causerie keys``: the file with the names and hashes of API keys."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from causerie.cli.options import load, setting_options
from causerie.cli.terminal import tell
from causerie.errors import ConfigError
from causerie.keys import check_name, hash_of, new_key, read_file

_NEXT = "A server that runs takes it over at SIGHUP."


@click.group(invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """Make and remove API keys.

    A key lets its bearer use the server, and its name owns what is made with it. The file has names and hashes
    only, so a key is shown once, when it is made.

    \b
    Examples:
      causerie keys add alice --api-keys-file keys.txt
      causerie keys list --api-keys-file keys.txt
      causerie keys remove alice --api-keys-file keys.txt
      causerie serve --api-keys-file keys.txt
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@keys.command()
@click.argument("name")
@setting_options("api_keys_file")
def add(name: str, flags: dict[str, Any], config: Path | None) -> None:
    """Make a key called NAME, and print it: this once."""
    file = _file(flags, config)
    key = new_key()
    with _changing(file) as (known, write):
        if check_name(name) in known:
            raise ConfigError(
                f"There is a key called {name} already. For a new one: causerie keys remove {name}, first."
            )
        write([*_lines(file), f"{name}: {hash_of(key.encode())}"])
    click.echo(key)
    tell(f"That is the key of {name}, and it is shown only now; {file} has its hash. {_NEXT}")


@keys.command("list")
@setting_options("api_keys_file")
def list_(flags: dict[str, Any], config: Path | None) -> None:
    """Print the names of the keys."""
    for name in read_file(_file(flags, config)):
        click.echo(name)


@keys.command()
@click.argument("name")
@setting_options("api_keys_file")
def remove(name: str, flags: dict[str, Any], config: Path | None) -> None:
    """Remove the key called NAME. What it made stays its name's."""
    file = _file(flags, config)
    with _changing(file) as (known, write):
        if name not in known:
            raise ConfigError(f"There is no key called {name} in {file}.")
        write([line for line in _lines(file) if line.partition(":")[0].strip() != name])
    tell(f"The key of {name} is removed. {_NEXT}")


def _file(flags: dict[str, Any], config: Path | None) -> Path:
    file = load(flags, config).api_keys_file
    if file is None:
        raise click.UsageError("Say which file: --api-keys-file FILE, or CAUSERIE_API_KEYS_FILE.")
    return file.resolve()  # Of a link, what it links to is changed.


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


@contextlib.contextmanager
def _changing(file: Path) -> Iterator[tuple[dict[str, str], Callable[[list[str]], None]]]:
    """What is in ``file``, and a function that replaces it in one go; nobody else can change it meanwhile."""
    new = file.with_name(file.name + ".new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"Somebody is changing {file} right now. If nobody is, remove {new}.") from None
    except OSError as error:
        raise ConfigError(f"Cannot write {new}: {error.strerror}.") from None

    written = False

    def write(lines: list[str]) -> None:
        nonlocal written
        stream.write("".join(line + "\n" for line in lines))
        stream.flush()
        os.fsync(descriptor)
        new.replace(file)
        written = True

    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            yield read_file(file) if file.exists() else {}, write
    finally:
        if not written:
            new.unlink()
