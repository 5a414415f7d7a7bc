"""Log-probabilities in the two shapes of the OpenAI API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from causerie.types import TokenLogprob

LOWEST = -9999.0
"""What the API says for a probability of zero, whose logarithm JSON cannot hold."""


class TokenNames(Protocol):
    """How single tokens are spelled; ``causerie.text.model.TextModel`` is one."""

    def token_text(self, id: int) -> str: ...  # noqa: A002

    def token_bytes(self, id: int) -> bytes: ...  # noqa: A002


LogprobWriter: TypeAlias = Callable[[Sequence[TokenLogprob]], dict[str, object]]
"""Takes a choice's tokens in order, perhaps over several calls."""


def token_logprobs(names: TokenNames, tokens: Sequence[TokenLogprob]) -> list[dict[str, object]]:
    """``tokens`` as chat completions and responses describe them."""

    def entry(id_: int, logprob: float) -> dict[str, object]:
        return {
            "token": names.token_text(id_),
            "logprob": max(LOWEST, logprob),
            "bytes": list(names.token_bytes(id_)),
        }

    return [
        entry(token.id, token.logprob) | {"top_logprobs": [entry(id_, value) for id_, value in token.top]}
        for token in tokens
    ]


def chat_logprobs(names: TokenNames) -> LogprobWriter:
    """A choice's ``logprobs`` member in chat completions."""
    return lambda tokens: {"content": token_logprobs(names, tokens), "refusal": None}


def text_logprobs(names: TokenNames) -> LogprobWriter:
    """A choice's ``logprobs`` member in text completions.

    Offsets count the characters of the tokens as they are spelled in ``tokens``: those of a character that several
    tokens make up, and the end-of-text, are spelled out too.
    """
    offset = 0

    def write(tokens: Sequence[TokenLogprob]) -> dict[str, object]:
        nonlocal offset
        texts = [names.token_text(token.id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(LOWEST, token.logprob) for token in tokens],
            "top_logprobs": [
                {names.token_text(id_): max(LOWEST, value) for id_, value in token.top} for token in tokens
            ],
            "text_offset": offsets,
        }

    return write
