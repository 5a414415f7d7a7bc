"""The message that is being typed on a socket: what may be done to it, so that no text is lost or joined unnoticed.

Clients type without waiting for answers. So when an edit is refused, those that were sent behind it are too, until
the client says what it wants to be there. The text itself is kept elsewhere.

=========  ====================================================================================================
``CLOSED``  There is none; the first append opens it.
``OPEN``    It takes everything.
``TORN``    An edit was refused: neither text nor commit may follow before a truncate or a clear.
``HELD``    A commit was refused, and may be tried again. Text would be joined to a message that its client thinks sent:
            it tears it.
=========  ====================================================================================================

Torn or held, an append with its own ``response`` is the beginning of another message.
"""

from __future__ import annotations

from enum import Enum

from causerie.errors import InvalidRequest
from causerie.wire.socket_events import Append, Clear, Commit, Create, Edit, Truncate


class State(Enum):
    CLOSED = "closed"
    OPEN = "open"
    TORN = "torn"
    HELD = "held"


class TextBuffer:
    """``opening`` is what the text will be the last message of, while there is one."""

    def __init__(self) -> None:
        self.state = State.CLOSED
        self.opening: Create | None = None

    def take(self, edit: Append | Truncate | Clear | Commit) -> None:
        """Raises InvalidRequest for what may not be done now, and then is as after ``refuse``.

        After an append without an ``opening`` here, it is to be given one.
        """
        try:
            self._check(edit)
        except InvalidRequest:
            self.refuse(type(edit))
            raise
        if isinstance(edit, Clear):
            self.close()
        elif isinstance(edit, Append) and edit.opening is not None:
            self.state, self.opening = State.OPEN, None
        elif not isinstance(edit, Commit):
            self.state = State.OPEN

    def refuse(self, edit: type[Edit]) -> None:
        """It was not done: not understood, not possible, or what it asks for is more than may be."""
        if edit is Commit:
            self.state = State.HELD if self.state is State.OPEN else self.state
        elif self.opening is not None or edit is Append:
            self.state = State.TORN

    def fail(self) -> None:
        """It could not be opened."""
        self.state, self.opening = State.TORN, None

    def hold(self, opening: Create) -> bool:
        """Take a message back that was committed, but could not be answered; False where the next one was begun."""
        if self.state is not State.CLOSED:
            return False
        self.state, self.opening = State.HELD, opening
        return True

    def close(self) -> None:
        self.state, self.opening = State.CLOSED, None

    def _check(self, edit: Append | Truncate | Clear | Commit) -> None:
        match edit:
            case Append(_, opening):
                if opening is not None and self.state is State.OPEN:
                    raise InvalidRequest(
                        "'response' belongs to the first append; input_text_buffer.clear begins anew.", param="response"
                    )
                if opening is None and self.state is State.TORN:
                    raise _torn()
                if opening is None and self.state is State.HELD:
                    raise InvalidRequest(
                        "The message was not committed, and this would be joined to it. Truncate it to what it is to "
                        "have, or clear it.",
                        param="type",
                    )
            case _ if self.state is State.CLOSED:
                raise InvalidRequest("There is no input text buffer; input_text_buffer.append opens one.", param="type")
            case Commit() if self.state is State.TORN:
                raise _torn()
            case Truncate() if self.opening is None:
                raise _torn()


def _torn() -> InvalidRequest:
    return InvalidRequest(
        "Text before this was refused, so there would be a hole. Truncate the message to what it is to have, or clear "
        "it and begin anew.",
        param="type",
    )
