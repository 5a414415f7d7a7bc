"""Who may run: a bound on sequences and on KV-cache tokens, and a bounded queue for those who wait.

Everything runs on one event loop and nothing here waits: a ticket's holder is told when its turn has come.
Waiting tickets are served in the order in which they entered; one that does not say yet what it needs (its
prompt is still being tokenised) is passed by, one that does is never overtaken by a smaller one behind it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from causerie.errors import InvalidRequest, Overloaded, ShuttingDown

_SMOOTHING = 0.2
_LONGEST_RETRY_AFTER = 60


class Ticket:
    """One request's place: waiting, then running, then released. Made by ``Admission.enter``."""

    __slots__ = ("_admission", "_granted", "_since", "kv_tokens", "on_granted", "on_moved", "sequences")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._granted = False
        self._since = time.monotonic()
        self.sequences = 0
        self.kv_tokens = 0
        self.on_granted: Callable[[], None] | None = None
        self.on_moved: Callable[[int], None] | None = None
        """Called with its position when somebody has left the queue, while it waits itself."""

    @property
    def granted(self) -> bool:
        return self._granted

    @property
    def position(self) -> int:
        """How many wait before this one; 0 is next. Only while it waits."""
        return self._admission._position(self)

    def estimated_wait(self, position: int) -> float:
        """Seconds until the turn of whoever is at ``position``, if those before take as long as others did lately."""
        return self._admission._wait_behind(position)

    def request(self, sequences: int, kv_tokens: int, on_granted: Callable[[], None]) -> None:
        """Say what it takes; ``on_granted`` is called once, perhaps before this returns.

        Raises InvalidRequest where it could never be had, whoever else leaves.
        """
        self._admission._check(sequences, kv_tokens)
        self.sequences, self.kv_tokens, self.on_granted = sequences, kv_tokens, on_granted
        self._admission._grant()

    def give_back(self, sequences: int, kv_tokens: int) -> None:
        """Return a part of what was granted, as one of several sequences ends."""
        self._admission._give_back(self, sequences, kv_tokens)

    def release(self) -> None:
        """Return everything, waiting or running. Safe to call twice."""
        self._admission._release(self)


class Admission:
    """``kv_tokens`` and ``max_sequences`` bound what runs, ``max_waiting`` the queue behind it."""

    def __init__(self, *, max_sequences: int, kv_tokens: int, max_waiting: int) -> None:
        self.max_sequences = max_sequences
        self.kv_tokens = kv_tokens
        self.max_waiting = max_waiting
        self.sequences_running = 0
        self.kv_tokens_reserved = 0
        self._waiting: dict[Ticket, None] = {}
        self._running: set[Ticket] = set()
        self._blocked = False
        self._closed = False
        self._seconds_held = 1.0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def enter(self) -> Ticket:
        """A place to run or to wait, decided at once. Raises Overloaded, or ShuttingDown after ``close``."""
        if self._closed:
            raise ShuttingDown("The server is shutting down and takes no new requests.", retry_after=5)
        # Those who will run at once do not count as waiting, unless somebody before them already cannot.
        free = 0 if self._blocked else max(0, self.max_sequences - self.sequences_running)
        if len(self._waiting) >= free + self.max_waiting:
            raise Overloaded(
                f"The server is full: {self.sequences_running} sequences are running and {len(self._waiting)} "
                "requests are waiting. Try again later.",
                retry_after=self._retry_after(),
            )
        ticket = Ticket(self)
        self._waiting[ticket] = None
        return ticket

    def resize(self, *, max_sequences: int, kv_tokens: int) -> None:
        """Let so much run from now on; what runs already stays."""
        self.max_sequences = max_sequences
        self.kv_tokens = kv_tokens
        self._grant()

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
        self._closed = True

    def _retry_after(self) -> int:
        return max(1, min(_LONGEST_RETRY_AFTER, math.ceil(self._wait_behind(len(self._waiting)))))

    def _wait_behind(self, others: int) -> float:
        return (others + 1) / self.max_sequences * self._seconds_held

    def _check(self, sequences: int, kv_tokens: int) -> None:
        if sequences > self.max_sequences:
            raise InvalidRequest(
                f"'n' is {sequences}, but this server runs at most {self.max_sequences} sequences at once.", param="n"
            )
        if kv_tokens > self.kv_tokens:
            raise InvalidRequest(
                f"This request may need {kv_tokens} tokens of KV cache (prompt and output limit, times n), but the "
                f"server's cache has {self.kv_tokens}. Lower max_tokens or n, or shorten the prompt.",
                param="max_tokens",
            )

    def _grant(self) -> None:
        before = len(self._waiting)
        self._start_next()
        self._tell_moved(before)

    def _tell_moved(self, before: int) -> None:
        if len(self._waiting) < before:
            for position, ticket in enumerate(list(self._waiting)):
                if ticket.on_moved is not None:
                    ticket.on_moved(position)

    def _start_next(self) -> None:
        self._blocked = False
        for ticket in [ticket for ticket in self._waiting if ticket.on_granted is not None]:
            # A callback may have released it, or granted it by releasing another.
            if ticket not in self._waiting:
                continue
            # Where nothing runs it starts in any case: one from before a ``resize`` would wait for ever.
            if self._running and (
                self.sequences_running + ticket.sequences > self.max_sequences
                or self.kv_tokens_reserved + ticket.kv_tokens > self.kv_tokens
            ):
                self._blocked = True
                return
            self._start(ticket)

    def _start(self, ticket: Ticket) -> None:
        del self._waiting[ticket]
        self._running.add(ticket)
        self.sequences_running += ticket.sequences
        self.kv_tokens_reserved += ticket.kv_tokens
        ticket._granted = True
        ticket._since = time.monotonic()
        assert ticket.on_granted is not None
        ticket.on_granted()

    def _give_back(self, ticket: Ticket, sequences: int, kv_tokens: int) -> None:
        ticket.sequences -= sequences
        ticket.kv_tokens -= kv_tokens
        self.sequences_running -= sequences
        self.kv_tokens_reserved -= kv_tokens
        self._grant()

    def _release(self, ticket: Ticket) -> None:
        if ticket in self._running:
            self._running.remove(ticket)
            held = time.monotonic() - ticket._since
            self._seconds_held += _SMOOTHING * (held - self._seconds_held)
            self._give_back(ticket, ticket.sequences, ticket.kv_tokens)
        elif ticket in self._waiting:
            del self._waiting[ticket]
            self._start_next()
            self._tell_moved(len(self._waiting) + 1)

    def _position(self, ticket: Ticket) -> int:
        return next((index for index, other in enumerate(self._waiting) if other is ticket), 0)
