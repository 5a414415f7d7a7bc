"""What the three bots share: a transformers model with its text, and the answer to what cannot be answered.

pip install "causerie[transformers,ray]"
"""

import logging
import sys
from dataclasses import dataclass
from typing import Any

from fastapi import Request, WebSocket
from ray import cloudpickle
from starlette.responses import PlainTextResponse, Response

from causerie.chat.conversation import without_oldest_turn
from causerie.errors import CauserieError, ContextLengthExceeded, ModelUnavailable
from causerie.models.resolve import resolve
from causerie.text.model import TextModel
from causerie.types import ChatPrompt, Message
from causerie.web.errors import meaning

ANSWER_TOKENS = 200

logger = logging.getLogger("ray.serve")
# Ray sends a bot's own module to wherever it runs, but not what that imports, unless told so.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """``model`` and ``tokenizer`` are transformers' own."""

    model: Any
    tokenizer: Any
    text: TextModel
    context_window: int

    @property
    def end_ids(self) -> list[int]:
        return sorted(self.text.eos_token_ids)

    @property
    def answer_tokens(self) -> int:
        """The room that is kept for an answer."""
        return min(ANSWER_TOKENS, self.context_window // 2)

    @property
    def limits(self) -> dict[str, Any]:
        """What ends an answer, as arguments of ``generate``."""
        return {"max_new_tokens": self.answer_tokens, "eos_token_id": self.end_ids, "pad_token_id": self.end_ids[0]}

    def encode(self, conversation: tuple[Message, ...]) -> tuple[list[int], tuple[Message, ...]]:
        """The ids of as many of the newest turns as leave room for the answer, and those turns.

        No text of theirs becomes a control token. Raises ContextLengthExceeded if the last turn alone is too long.
        """
        try:
            ids = self.text.encode(ChatPrompt(conversation), limit=self.context_window)
            if len(ids) > self.context_window - self.answer_tokens:
                raise ContextLengthExceeded(len(ids), self.context_window)
            return ids, conversation
        except ContextLengthExceeded:
            if (shorter := without_oldest_turn(conversation)) is None:
                raise
            return self.encode(shorter)


@dataclass(slots=True)
class Prompt:
    """A prompt in a batch, and whether its client has left."""

    ids: list[int]
    left: bool = False


class MissingModel:
    """Stands for a model that could not be had: whatever is asked of it, it raises the reason."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise ModelUnavailable(self._reason)


def load(model: str, bot: str) -> LoadedModel | MissingModel:
    """Load what ``model`` names: a hub id, a folder, a .gguf file, or ``default``.

    Without it, one line in the log says what to do. Raised, the error would have Ray Serve try again and again, and
    bury that line under tracebacks.
    """
    try:
        folder = resolve(model, form="f16", engine="transformers")
    except ModelUnavailable as error:
        reason = f"No model. For the default one, which needs no hub: serve run {bot}:build model=default ({error})"
        logger.error(reason)
        return MissingModel(reason)
    # Imported here, because it takes seconds and that line should not wait for it.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = TextModel.load(folder.path, eos_token_ids=folder.eos_token_ids, bos_token_id=folder.bos_token_id)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder.path)
    return LoadedModel(loaded, AutoTokenizer.from_pretrained(folder.path), text, folder.context_window)


async def refuse(request: Request, error: CauserieError) -> Response:
    """For FastAPI's ``exception_handlers``: the reason, with its status."""
    return PlainTextResponse(f"{error}\n", meaning(error).status)


async def hang_up(ws: WebSocket, error: Exception) -> None:
    """Close a socket with as much of the reason as a close frame holds."""
    assert isinstance(error, CauserieError)
    await ws.close(meaning(error).close_code, str(error).encode()[:123].decode(errors="ignore"))
