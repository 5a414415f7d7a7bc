"""The Responses API's WebSocket mode: parallel lanes of responses on one socket, which can be steered and interrupted.

A machine without I/O. Feed it what the client sent (``receive``) and what became of what it asked for (``created``,
``refused``, ``event``, ``ended``); each gives the actions to take next, in order. Each lane answers one response at
a time, in the order in which they were asked for, and every response that was created ends with one terminal event.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import orjson

from causerie.chat.records import Item, Status
from causerie.errors import (
    CauserieError,
    InvalidRequest,
    Overloaded,
    ResponseNotActive,
    ResponseNotFound,
    TooManyLanes,
)
from causerie.types import CancelCause
from causerie.wire.kept_answers import KeptAnswers
from causerie.wire.responses_events import StreamEvent
from causerie.wire.responses_request import ResponseCall
from causerie.wire.socket_events import Ack, Append, Bad, Cancel, ClientEvent, Commit, Create, Edit, Steer
from causerie.wire.socket_lane import Acknowledge, Action, Begin, Lane, Open, Send, State, Stop
from causerie.wire.text_buffer import TextBuffer

MAX_LANES = 32
"""With a name, for as long as the socket is open; the API's own number."""
MAX_WAITING = 16
"""Responses of all lanes that may wait while others are answered."""
MAX_STEERS = 8
"""That may come for one response before it has ended."""
MAX_ENDED = 256
"""Ended responses of which a socket knows how they ended."""

Describe: TypeAlias = Callable[[CauserieError], tuple[int, str]]
"""The HTTP status of an error, and the API's type of it."""


class _Ended(NamedTuple):
    status: Status
    lane: str | None
    number: int


class _Committed(NamedTuple):
    """The message that was committed last, until its response exists."""

    call: ResponseCall
    opening: Create
    text: str
    history: Sequence[Item] | None
    """What it was typed behind."""


class ResponseSocket:
    """One client's socket, from accept to close.

    ``interrupting``: a response that is asked for while one runs on its lane does not wait, but ends that one.
    """

    def __init__(self, describe: Describe, opening: Callable[[], Create], *, interrupting: bool = False) -> None:
        self._describe = describe
        self._opening = opening
        self._interrupting = interrupting
        self._lanes: dict[str | None, Lane] = {None: Lane(None)}
        self._kept = KeptAnswers()
        self._ended: dict[str, _Ended] = {}
        self._buffer = TextBuffer()
        self._committed: _Committed | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing is being answered and nothing waits."""
        return all(lane.state is State.IDLE for lane in self._lanes.values())

    def receive(self, event: ClientEvent) -> list[Action]:
        """What the client sent. What it may not do is answered with an error event, and changes nothing."""
        name = event.lane if isinstance(event, Create | Cancel | Bad) else None
        try:
            match event:
                case Create(_, call):
                    return self._create(name, call)
                case Steer():
                    return self._steer(event)
                case Cancel():
                    return self._cancel(event)
                case Ack(response, shown):
                    return [Acknowledge(self._lane_of(response).name, shown)]
                case Bad(error, _, edit):
                    if edit is not None:
                        self._buffer.refuse(edit)
                    return [self.error(error, name)]
                case _:
                    return self._edit(event)
        except CauserieError as error:
            return [self.error(error, name)]

    def created(self, name: str | None, response: str) -> list[Action]:
        """The lane's response exists: from now on its events are sent."""
        lane = self._lanes[name]
        lane.move("created")
        lane.response, lane.number, lane.steers = response, 0, []
        if self._committed is not None and self._committed.call is lane.call:
            self._committed = None
        return [Stop(name, CancelCause.STOPPED)] if lane.stopped or (self._interrupting and lane.waiting) else []

    def refused(self, name: str | None, error: CauserieError) -> list[Action]:
        """It could not be created."""
        lane = self._lanes[name]
        lane.move("refused")
        lane.stopped = False
        if not lane.steers:
            return [*self._take_back(lane.call), self.error(error, name), *self._go_on(lane)]
        failed = self._fail_steers(lane, "successor_creation_failed", error.message)
        return [*failed, *self._go_on(lane)]

    def event(self, name: str | None, event: StreamEvent) -> Send:
        """The frame of an event of the lane's response."""
        self._lanes[name].number = event.number
        text = event.data.decode()
        return Send(text if name is None else f'{text[:-1]},"stream_id":"{name}"}}')

    def ended(self, name: str | None, status: Status, said: Sequence[Item]) -> list[Action]:
        """The terminal event of the lane's response was sent. ``said`` is what continues it begins with, all of it."""
        lane = self._lanes[name]
        call, response = lane.call, lane.response
        assert call is not None and response is not None
        lane.move("ended")
        lane.response, lane.stopped = None, False
        self._remember(response, _Ended(status, name, lane.number))
        if not call.store:
            self._kept.add(response, said)
        if lane.steers and status is Status.FAILED:
            failed = self._fail_steers(lane, "response_not_active", "The response failed before it could be steered.")
            return [*failed, *self._go_on(lane)]
        if lane.steers:
            steered = tuple(item for _, steer in lane.steers for item in steer.input)
            return self._begin(lane, replace(call, input=steered, previous=response))
        return self._go_on(lane)

    def broken(self, name: str | None, error: CauserieError, number: int) -> list[Action]:
        """No more of the lane's response can be read. ``number`` is that of the last event that was sent."""
        return [self.error(error, name, number), *self.ended(name, Status.FAILED, ())]

    def begin_again(self) -> None:
        """The first lane goes on with a response that an earlier socket asked for; tell ``created`` next."""
        lane = self._lanes[None]
        lane.move("begin")
        lane.call = self._opening().call

    def committed(self, text: str, history: Sequence[Item] | None = None) -> list[Action]:
        """The buffer's text, and what it was typed behind, which answers ``Commit``; the buffer is closed with it."""
        opening = self._buffer.opening
        assert opening is not None
        self._buffer.close()
        item = Item(f"msg_{uuid.uuid4().hex}", "user", text)
        call = replace(opening.call, input=(*opening.call.input, item))
        self._committed = _Committed(call, opening, text, history)
        return self.receive(Create(opening.lane, call))

    def unopened(self, error: CauserieError) -> list[Action]:
        """What answers ``Open`` where that is not possible."""
        self._buffer.fail()
        if error.param is not None:
            error.param = f"response.{error.param}"
        return [self.error(error)]

    def unedited(self, edit: Edit, error: CauserieError) -> list[Action]:
        """What answers an edit that was not possible, or the commit of no text, which changes nothing."""
        if not isinstance(edit, Commit):
            self._buffer.refuse(type(edit))
        return [self.error(error)]

    def prefilled(self, tokens: int, cached: int) -> Send:
        """How many tokens of the buffer's prompt are settled, and how many of them the model has read."""
        return _send({"type": "input_text_buffer.prefilled", "tokens": tokens, "cached_tokens": cached})

    def error(self, error: CauserieError, name: str | None = None, number: int | None = None) -> Send:
        """The API's error event of a socket, nested as its HTTP errors are; with a ``number`` it ends a stream."""
        status, type_ = self._describe(error)
        inner: dict[str, object] = {
            "type": type_,
            "code": error.code,
            "message": error.message,
            "param": error.param,
        }
        if isinstance(error, Overloaded):
            inner["headers"] = {"retry-after": str(error.retry_after)}
        frame = {"type": "error", "status": status, "error": inner}
        return _send(frame if number is None else frame | {"sequence_number": number}, name)

    def _create(self, name: str | None, call: ResponseCall) -> list[Action]:
        self._check_room(name)
        lane = self._lanes.setdefault(name, Lane(name))
        if lane.state is State.IDLE:
            return self._begin(lane, call)
        lane.waiting.append(call)
        if self._interrupting and lane.state is State.RUNNING:
            return [Stop(name, CancelCause.STOPPED)]
        return []

    def _check_room(self, name: str | None) -> None:
        """Raises TooManyLanes, or Overloaded, where no response can be asked for on a lane."""
        lane = self._lanes.get(name)
        if lane is None and len(self._lanes) > MAX_LANES:
            raise TooManyLanes(f"A socket has at most {MAX_LANES} lanes with names.", param="stream_id")
        if lane is None or lane.state is State.IDLE:
            return
        if sum(len(each.waiting) for each in self._lanes.values()) >= MAX_WAITING:
            raise Overloaded(f"More than {MAX_WAITING} responses wait for their turn on this socket.")

    def _begin(self, lane: Lane, call: ResponseCall) -> list[Action]:
        lane.move("begin")
        lane.call = call
        history = self._known(call)
        if history is not None and call.store:
            error = InvalidRequest(
                "What is not kept cannot be continued by what is: give 'store': false here too.", param="store"
            )
            return self.refused(lane.name, error)
        return [Begin(lane.name, call, history)]

    def _known(self, call: ResponseCall) -> Sequence[Item] | None:
        return None if call.previous is None else self._kept.items(call.previous)

    def _go_on(self, lane: Lane) -> list[Action]:
        return self._begin(lane, lane.waiting.popleft()) if lane.waiting else []

    def _steer(self, event: Steer) -> list[Action]:
        lane = next((each for each in self._lanes.values() if each.response == event.target), None)
        refusal = self._steering_refusal(event, lane)
        if refusal is not None or lane is None:
            ended = self._ended.get(event.target)
            name, number = (None, 0) if ended is None else (ended.lane, ended.number)
            place = (name, number) if lane is None else (lane.name, lane.number)
            return [_steer_failed(event, *place, *(refusal or ("response_not_found", "")))]
        id_ = f"steer_{uuid.uuid4().hex}"
        first = lane.state is State.RUNNING
        lane.move("steer")
        lane.steers.append((id_, event))
        accepted = {
            "type": "response.steer.accepted",
            "sequence_number": lane.number,
            "steer": {"id": id_, "previous_response_id": event.target},
        }
        return [*([Stop(lane.name, CancelCause.STEERED)] if first else []), _send(accepted, lane.name)]

    def _steering_refusal(self, event: Steer, lane: Lane | None) -> tuple[str, str] | None:
        if lane is None or lane.call is None:
            ended = self._ended.get(event.target)
            if ended is None:
                return "response_not_found", f"No response {event.target[:64]!r} is being generated on this socket."
            if ended.status is Status.COMPLETED:
                return "response_already_completed", "This response is complete. Continue it with response.create."
            return "response_not_active", "This response has ended. Continue it with response.create."
        if event.fault is not None:
            return "invalid_input", event.fault
        if lane.call.conversation is not None or not lane.call.generate:
            what = "in a conversation" if lane.call.generate else "that only reads its prompt"
            return "steering_not_supported", f"A response {what} cannot be steered."
        if lane.stopped:
            return "response_not_active", "This response is being cancelled."
        if len(lane.steers) >= MAX_STEERS:
            return "too_many_pending_steers", f"{MAX_STEERS} inputs wait to steer this response; no more may."
        return None

    def _fail_steers(self, lane: Lane, code: str, message: str) -> list[Action]:
        steers, lane.steers = lane.steers, []
        return [_steer_failed(steer, lane.name, lane.number, code, message, id_) for id_, steer in steers]

    def _lane_of(self, response: str) -> Lane:
        """The one that it is being answered on. Raises ResponseNotFound, or ResponseNotActive where it has ended."""
        lane = next((each for each in self._lanes.values() if each.response == response), None)
        if lane is None and response in self._ended:
            raise ResponseNotActive("This response has ended.", param="response_id")
        if lane is None:
            raise ResponseNotFound(
                f"No response {response[:64]!r} is being generated on this socket.", param="response_id"
            )
        return lane

    def _cancel(self, event: Cancel) -> list[Action]:
        lane = self._lanes.get(event.lane) if event.response is None else self._lane_of(event.response)
        if lane is None or lane.state is State.IDLE:
            where = "on the lane without a name" if event.lane is None else f"on the lane {event.lane!r}"
            param = "type" if event.lane is None else "stream_id"
            raise ResponseNotActive(f"Nothing is being generated {where}.", param=param)
        creating, lane.stopped = lane.state is State.CREATING, True
        failed: list[Action] = []
        if lane.state is State.STEERED:
            failed = self._fail_steers(lane, "response_not_active", "The response was cancelled.")
            lane.move("cancel")
        return failed if creating else [Stop(lane.name, CancelCause.STOPPED), *failed]

    def _edit(self, event: Edit) -> list[Action]:
        buffer = self._buffer
        buffer.take(event)
        if isinstance(event, Commit) and buffer.opening is not None:
            try:
                self._check_room(buffer.opening.lane)
            except CauserieError as error:
                buffer.refuse(Commit)
                return [self.error(error, buffer.opening.lane)]
        if isinstance(event, Append) and buffer.opening is None:
            buffer.opening = event.opening or self._opening()
            call = buffer.opening.call
            return [Open(call, self._known(call)), event]
        return [event]

    def _take_back(self, call: ResponseCall | None) -> list[Action]:
        """Open the buffer again with what was committed for ``call``, if it was that."""
        committed = self._committed
        if committed is None or committed.call is not call:
            return []
        self._committed = None
        if not self._buffer.hold(committed.opening):
            return []
        # With the history that it had, so that nothing is asked of a store that may be why it was refused.
        return [Open(committed.opening.call, committed.history), Append(committed.text, None)]

    def _remember(self, response: str, ended: _Ended) -> None:
        self._ended[response] = ended
        if len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]


def _steer_failed(event: Steer, name: str | None, number: int, code: str, message: str, id_: str | None = None) -> Send:
    steer = {"previous_response_id": event.target, "input": event.given} | ({} if id_ is None else {"id": id_})
    error = {"type": "invalid_request_error", "code": code, "message": message}
    return _send({"type": "response.steer.failed", "sequence_number": number, "steer": steer, "error": error}, name)


def _send(frame: dict[str, object], lane: str | None = None) -> Send:
    return Send(orjson.dumps(frame if lane is None else frame | {"stream_id": lane}).decode())
