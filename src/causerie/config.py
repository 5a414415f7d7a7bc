"""Every setting, defined once: its flag, its ``CAUSERIE_…`` variable, its YAML key and its line in the docs
all come from the fields of ``Settings``.

A field ``max_batch_size`` is ``--max-batch-size``, ``CAUSERIE_MAX_BATCH_SIZE`` and ``max_batch_size:``. What is
given nearer to the command wins: flag, then environment, then file, then default.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from causerie.errors import ConfigError
from causerie.keys import parse_variable

ENV_PREFIX = "CAUSERIE_"
OTHER_VARIABLES = frozenset({"api_key", "cache", "config", "server"})
"""Variables of ours that are no settings of the server: ``ask``'s key and server, where models are kept, the settings
file."""
SECRETS = frozenset({"api_keys"})
"""Settings that only a variable can give: a flag is seen by everybody on the machine, and files are passed around."""


_HOST_NAME = re.compile(r"\*|[a-z0-9._-]{1,253}")


class Settings(BaseModel):
    """The server's settings. Durations are seconds, sizes say their unit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        default="default",
        description="The model: nothing for the default one (SmolLM2-135M-Instruct), a hub id (org/repo, or "
        "org/repo:Q4_K_M for one GGUF of it), a local folder, or a local .gguf file.",
    )
    engine: Literal["auto", "openvino", "transformers", "scripted"] = Field(
        default="auto",
        description="What runs the model. auto picks by the model's form and says why; scripted needs no model.",
    )
    precision: Literal["balanced", "exact", "small"] = Field(
        default="balanced",
        description="Trade of speed against faithfulness to the model's weights; docs/precision.md has the table. "
        "For OpenVINO; the transformers engine computes in the form that the weights have.",
    )
    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    allow_anonymous: bool = Field(
        default=False, description="Listen to other machines without asking for a key; refused unless this says so."
    )
    allowed_hosts: tuple[str, ...] | None = Field(
        default=None,
        description="Names, beside localhost and IP addresses, that clients may give in the Host header; * is any. "
        "Default: any with API keys, else none, since any web page can have a name of its own lead here.",
    )
    api_keys: dict[str, str] | None = Field(
        default=None,
        description="API keys, as name=key,name2=key2. With keys, one is needed for all but /health and /ready "
        "(docs/keys.md).",
    )
    api_keys_file: Path | None = Field(
        default=None,
        description="File with the names and hashes of API keys, which causerie keys writes; read again at SIGHUP.",
    )
    port: int = Field(default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    max_batch_size: int = Field(default=64, ge=1, le=4096, description="Sequences that run at once.")
    max_waiting: int = Field(
        default=128, ge=0, le=100_000, description="Requests that may wait for their turn; past it: 429."
    )
    kv_cache_gib: float = Field(
        default=1.0, gt=0, le=4096, description="Memory for the KV cache, in GiB; bounds what runs at once."
    )
    prefill_piece: int = Field(
        default=128,
        ge=32,
        le=65536,
        description="Longest piece, in tokens, in which a prompt is read before others get their turn; twice that for "
        "what is read ahead while nobody waits.",
    )
    max_tokens: int = Field(default=1024, ge=1, description="Output limit of a request that names none, in tokens.")
    max_output_tokens: int | None = Field(
        default=None, ge=1, description="Highest output limit that a request may ask for; none: the context window."
    )
    context_overflow: Literal["drop_oldest", "error"] = Field(
        default="drop_oldest",
        description="When a chat socket's conversation no longer fits: drop the oldest turns whole, or answer "
        "with an error.",
    )
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, description="Largest request body, in bytes.")
    max_frame_bytes: int = Field(default=2**20, ge=1024, description="Largest WebSocket message, in bytes.")
    store: str = Field(
        default="default",
        description="Where responses and conversations are kept: nothing for a SQLite file in the user's data "
        "folder, one for each port (and memory for port 0), a file's path, :memory: for as long as the server runs, or "
        "redis://host:6379/0 for several servers.",
    )
    store_max_age: float = Field(
        default=30 * 86400.0, gt=0, description="Seconds after which a kept response or conversation is removed."
    )
    store_max_gib: float = Field(
        default=1.0,
        ge=2**-10,
        le=4096,
        description="Size of the store, in GiB; past it, the oldest responses and conversations are removed.",
    )
    max_typed_characters: int = Field(
        default=2**20, ge=1, description="Longest text, in characters, that is read ahead while it is being typed."
    )
    max_typed_per_key: int = Field(
        default=32 * 2**20,
        ge=1,
        description="Text, in characters, that may be typed or streamed in and not committed yet under one API key, "
        "on all its connections together; without keys, for all clients together. Past it: 429.",
    )
    body_timeout: float = Field(
        default=30.0,
        gt=0,
        description="Seconds for a request's body to arrive; of a text body that streams in: its longest silence.",
    )
    streamed_body_timeout: float = Field(
        default=900.0, gt=0, description="Seconds for the whole of a text body that streams in (POST or PUT /)."
    )
    send_timeout: float = Field(
        default=60.0, gt=0, description="Seconds a client may take no byte of its answer before it is cut off."
    )
    heartbeat: float = Field(
        default=10.0, gt=0, description="Seconds of silence after which an event stream gets a comment line."
    )
    resume_window: float = Field(
        default=60.0,
        ge=0,
        le=86400,
        description="Seconds for which an ended stream that asked to outlive its reader (on_disconnect) can be read "
        "again; stored responses can be for as long as they are kept.",
    )
    shutdown_deadline: float = Field(
        default=25.0, ge=0, description="Seconds that running answers have to finish after SIGTERM or Ctrl-C."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="How much is logged. Prompt and answer text never is."
    )

    @property
    def has_keys(self) -> bool:
        """Whether clients have to show a key."""
        return self.api_keys is not None or self.api_keys_file is not None

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and not {int, float}.isdisjoint((kind, *get_args(kind))):
            raise PydanticCustomError("number", "Give a number, not true or false")
        return value

    @field_validator("api_keys", mode="before")
    @classmethod
    def _hash(cls, value: Any) -> Any:
        return parse_variable(value) if isinstance(value, str) else value

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return names
        found = tuple(str(name).strip().lower() for name in names)
        if not all(_HOST_NAME.fullmatch(name) for name in found):
            raise PydanticCustomError("hosts", "Give names without a port, as chat.example.org, or *")
        return found


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings from flags, environment and YAML file, in that order of strength.

    ``flags`` holds only what was given. Raises ConfigError that names the setting and where it came from.
    """
    sources: dict[str, tuple[str, Any]] = {}
    for key, value in _read_yaml(file).items():
        sources[str(key)] = (f"{key!r} in {file.name if file else ''}", value)
    for variable in sorted(environ):
        name = variable.removeprefix(ENV_PREFIX).lower()
        if variable.startswith(ENV_PREFIX) and name not in OTHER_VARIABLES:
            sources[name] = (variable, environ[variable])
    for name, value in (flags or {}).items():
        sources[name] = ("--" + name.replace("_", "-"), value)
    variables = {name for name, (where, _) in sources.items() if where == ENV_PREFIX + name.upper()}
    for name in sorted(SECRETS & set(sources)):
        if name not in variables:
            raise ConfigError(
                f"{sources[name][0]} is a secret, which only the variable {ENV_PREFIX}{name.upper()} can give.",
                param=name,
            )
    unknown = sorted(set(sources) - set(Settings.model_fields))
    if unknown:
        known = sorted(set(Settings.model_fields) - (set() if unknown[0] in variables else SECRETS))
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
        raise ConfigError(f"Unknown setting {sources[unknown[0]][0]}. {hint}", param=unknown[0])
    try:
        return Settings.model_validate({name: value for name, (_, value) in sources.items()})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        where, value = sources[name]
        raise ConfigError(f"{where}: {first['msg']} (got {value!r}).", param=name) from None


def _read_yaml(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the settings file {file}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{file} must hold settings as 'name: value' lines.")
    return content
