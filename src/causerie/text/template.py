"""A model's chat template, rendered as Hugging Face's transformers renders it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from causerie.errors import InvalidRequest, ModelUnavailable
from causerie.types import Message


class ChatTemplate:
    """Renders conversations up to where the assistant's next turn begins.

    ``variables`` are the texts of the special tokens (``bos_token``, ``eos_token``, …). Raises ModelUnavailable
    for a template that is not valid Jinja. The template is the model's own; none is taken from a client.
    """

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ModelUnavailable(
                f"The model's chat template is not valid: {error.message}, on line {error.lineno}."
            ) from None
        self._variables = dict(variables)

    def render(self, messages: Sequence[Message]) -> str:
        """Raises InvalidRequest where the template refuses the conversation (roles that must alternate, …)."""
        try:
            return self._template.render(
                {
                    **self._variables,
                    "messages": [_as_dict(message) for message in messages],
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": True,
                }
            )
        except _Refused as refusal:
            raise InvalidRequest(
                f"The model's chat template refuses these messages: {refusal}", param="messages"
            ) from None
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise InvalidRequest(
                f"The model's chat template cannot render these messages ({error}). Check their roles and order.",
                param="messages",
            ) from None


class _Refused(Exception):
    """What a template says with ``raise_exception``."""


class _GenerationTag(Extension):
    """``{% generation %}`` marks what the assistant said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _as_dict(message: Message) -> dict[str, str]:
    fields = {"role": message.role, "content": message.content}
    return fields if message.name is None else fields | {"name": message.name}


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape ``<`` and ``&`` for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
