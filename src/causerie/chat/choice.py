"""One choice of a response: from the engine's ids to text that may be sent."""

from __future__ import annotations

from causerie.engines.base import EndReason, Update
from causerie.text.detokenizer import Detokenizer
from causerie.text.stop import StopMatcher
from causerie.types import FinishReason, Part, TokenLogprob

_FINISHES = {EndReason.STOP: FinishReason.STOP, EndReason.LENGTH: FinishReason.LENGTH}


class Choice:
    """Detokenizes one sequence, holds back what could begin a stop string, and knows when the choice has ended.

    ``reason`` is set once; ids that come after it are not looked at.
    """

    __slots__ = (
        "_detokenizer",
        "_logprobs",
        "_stops",
        "_told",
        "ids",
        "index",
        "last_time",
        "reason",
        "sequence",
    )

    def __init__(self, index: int, sequence: int, detokenizer: Detokenizer, stops: tuple[str, ...]) -> None:
        self.index = index
        self.sequence = sequence
        self.ids: list[int] = []
        self.reason: FinishReason | None = None
        self.last_time: float | None = None
        self._detokenizer = detokenizer
        self._stops = StopMatcher(stops) if stops else None
        self._logprobs: list[TokenLogprob] = []
        self._told = 0

    def advance(self, update: Update) -> Part | None:
        """What ``update`` adds, if anything can be told of it; sets ``reason`` where the choice ends with it.

        Updates that say the engine failed are not for here.
        """
        ids, ended = update.ids, update.ended
        self.ids += ids
        if update.logprobs:
            self._logprobs += update.logprobs
        # The token that stopped it is the last, and no part of the text.
        text = self._detokenizer.feed(ids[:-1] if ended is EndReason.STOP and ids else ids)
        if ended is not None:
            text += self._detokenizer.flush()
            self.reason = _FINISHES[ended]
        if self._stops is not None:
            text = self._stops.feed(text)
            if ended is not None:
                text += self._stops.flush()
            if self._stops.matched is not None:
                self.reason = FinishReason.STOP
        if not text and self.reason is None and not self._logprobs:
            return None
        logprobs, self._logprobs = tuple(self._logprobs), []
        tokens, self._told = len(self.ids) - self._told, len(self.ids)
        return Part(self.index, text, tokens, logprobs, self.reason)
