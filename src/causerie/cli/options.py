"""Command-line options made from the fields of ``Settings``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from causerie.config import ENV_PREFIX, SECRETS, Settings, load_settings
from causerie.errors import ConfigError, InvalidRequest
from causerie.wire.fields import QueryFields
from causerie.wire.sampling import Limits, take_sampling

Command = Callable[..., Any]

MODEL_SETTINGS = ("model", "engine", "precision", "kv_cache_gib", "prefill_piece", "max_tokens")
"""The settings that matter to a command that runs a model for itself."""


def setting_options(*names: str) -> Callable[[Command], Command]:
    """Adds ``--config`` and the named settings' options (all of them if none is named).

    The command gets ``flags``, the settings that were given, and ``config``, for ``load``.
    """
    chosen = names or tuple(name for name in Settings.model_fields if name not in SECRETS)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in chosen}
            flags = {name: value for name, value in values.items() if value is not None}
            return command(*args, flags=flags, **kwargs)

        wrapped: Command = wrapper
        for name in reversed(chosen):
            wrapped = _option(name, Settings.model_fields[name])(wrapped)
        return _config_option(wrapped)

    return decorate


def load(flags: Mapping[str, Any], config: Path | None) -> Settings:
    """The settings, from all their sources. A wrong one is wrong usage."""
    try:
        return load_settings(flags, file=config)
    except ConfigError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


_METAVARS: dict[Any, str] = {
    bool: "true|false",
    int: "INTEGER",
    float: "NUMBER",
    str: "TEXT",
    Path: "FILE",
    tuple[str, ...]: "NAME,…",
    dict[str, str]: "NAME=KEY,…",
}


def metavar_of(field: FieldInfo) -> str:
    """What stands for a field's value: its choices, or its kind."""
    kinds = [kind for kind in get_args(field.annotation) or (field.annotation,) if kind is not type(None)]
    if get_origin(field.annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(field.annotation))
    return _METAVARS[kinds[0]]


def default_of(field: FieldInfo) -> str:
    if isinstance(field.default, bool):
        return str(field.default).lower()
    return "none" if field.default is None else str(field.default)


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    help_text = f"{field.description} [{ENV_PREFIX}{name.upper()}; default: {default_of(field)}]"
    if field.annotation is bool:
        return click.option(flag_of(name), name, is_flag=True, flag_value=True, default=None, help=help_text)
    # The value stays text: Settings checks it, with the same words whichever way it came in.
    return click.option(flag_of(name), name, metavar=metavar_of(field), help=help_text)


_config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    envvar=ENV_PREFIX + "CONFIG",
    metavar="FILE",
    help=f"YAML file with settings, as 'max_batch_size: 16'. Environment and flags win over it. [{ENV_PREFIX}CONFIG]",
)


server_option = click.option(
    "--server",
    envvar=ENV_PREFIX + "SERVER",
    metavar="URL",
    help=f"Ask this server (any with the OpenAI API) instead of running the model here. [{ENV_PREFIX}SERVER]",
)


def model_argument(command: Command) -> Command:
    """Adds the argument MODEL; the command gets ``model``, which is settings to be joined with the flags."""

    @functools.wraps(command)
    def wrapper(*args: Any, model_reference: str | None, **kwargs: Any) -> Any:
        model = {} if model_reference is None else {"model": model_reference}
        if model and "model" in kwargs["flags"]:
            raise click.UsageError("The model is named twice: as MODEL and as --model.")
        return command(*args, model=model, **kwargs)

    return click.argument("model_reference", required=False, metavar="[MODEL]")(wrapper)


_SAMPLING_HELP = {
    "temperature": "0 takes the likeliest token each time, 1 is the model's own distribution; 2 at most.",
    "top_p": "Sample only from the likeliest tokens that together have this probability.",
    "seed": "The same seed gives the same answer, as far as the arithmetic does.",
}


def sampling_options(command: Command) -> Command:
    """Adds options for how to sample; the command gets ``sampling``: by name, the values of those given."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {name: value for name in _SAMPLING_HELP if (value := kwargs.pop(name)) is not None}
        try:
            checked = take_sampling(QueryFields(given.items()), Limits("", 1, 1, 1, 1))
        except InvalidRequest as error:
            raise click.UsageError(f"{error}", click.get_current_context()) from None
        return command(*args, sampling={name: getattr(checked, name) for name in given}, **kwargs)

    wrapped: Command = wrapper
    for name, help_text in reversed(_SAMPLING_HELP.items()):
        wrapped = click.option(flag_of(name), name, metavar="NUMBER", help=help_text)(wrapped)
    return wrapped
