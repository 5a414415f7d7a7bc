"""Which tokens a JSON schema leaves possible, by llguidance."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""On one line, as the other engine has it."""


class Guide:
    """Follows one sequence, from its first token. ``error`` says why it cannot go on, if so."""

    def __init__(self, tokenizer: Any, schema: str) -> None:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_STYLE)  # type: ignore[arg-type]
        self._matcher = LLMatcher(tokenizer, grammar, log_level=0)

    @property
    def error(self) -> str:
        return str(self._matcher.get_error())

    def narrow(self, logits: Tensor) -> None:
        """Rule out, in place, what may not come next; an end of text may where the schema is fulfilled."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        possible = np.unpackbits(bits, count=len(logits), bitorder="little")
        logits.masked_fill_(torch.from_numpy(possible == 0).to(logits.device), -torch.inf)

    def add(self, id_: int) -> None:
        self._matcher.consume_token(id_)


def guiding(vocabulary: Sequence[bytes], ends: Collection[int]) -> Any:
    """What every guide of a model shares. A token that spells nothing is never possible, but for those in ``ends``."""
    return LLTokenizer(TokenizerWrapper(_Spelled(vocabulary, min(ends))), eos_token=sorted(ends))


class _Spelled:
    """The vocabulary as llguidance asks for it. What a schema leaves no choice in is spelled in the longest tokens."""

    bos_token_id = None

    def __init__(self, vocabulary: Sequence[bytes], end: int) -> None:
        self.eos_token_id = end
        self.tokens = list(vocabulary)
        self.special_token_ids = [id_ for id_, token in enumerate(vocabulary) if not token]
        self._ids = {token: id_ for id_, token in enumerate(vocabulary) if token}
        self._longest = max(map(len, vocabulary))

    def __call__(self, text: bytes) -> list[int]:
        ids, place = [], 0
        while place < len(text):
            lengths = range(min(self._longest, len(text) - place), 0, -1)
            length = next((it for it in lengths if text[place : place + it] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[text[place : place + length]])
            place += length
        return ids
