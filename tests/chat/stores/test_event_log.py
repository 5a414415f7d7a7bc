"""Whatever is written in whatever batches is what is read, from any number and by any reader."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from causerie.chat.store import Store
from causerie.types import (
    Event,
    Failed,
    Finished,
    FinishReason,
    Part,
    PrefillProgress,
    Queued,
    Started,
    TextDelta,
    TokenLogprob,
    Usage,
)
from tests.chat.stores.samples import record, writes

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ENDS = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED)
COUNT = st.integers(0, 2**31)
LOGPROB = st.builds(TokenLogprob, COUNT, st.floats(-50, 0), st.just(((7, -0.5),)))
PART = st.builds(
    Part,
    st.integers(0, 3),
    TEXT,
    COUNT,
    st.lists(LOGPROB, max_size=2).map(tuple),
    st.none() | st.sampled_from(FinishReason),
)
EVENT: st.SearchStrategy[Event] = st.one_of(
    st.builds(Queued, COUNT),
    st.builds(PrefillProgress, COUNT, COUNT),
    st.builds(Started, COUNT, st.integers(0, 9)),
    st.builds(TextDelta, st.lists(PART, min_size=1, max_size=3).map(tuple), st.none() | COUNT),
)
END: st.SearchStrategy[Event] = st.sampled_from(ENDS).map(lambda why: Finished((why,), Usage(1, 2, None)))
BATCHES = st.lists(st.lists(EVENT, max_size=4), max_size=5)
fresh = itertools.count()


@given(logs=st.lists(st.tuples(BATCHES, st.none() | END), min_size=1, max_size=3), after=st.integers(0, 25))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_what_was_written_is_read(
    store: Store, reader: Store, logs: Sequence[tuple[list[list[Event]], Event | None]], after: int
) -> None:
    written: dict[str, list[Event]] = {f"r{next(fresh)}": [] for _ in logs}
    for id_ in written:
        await store.begin(record(id_))
    for step in itertools.count():
        batch = []
        for (id_, before), (batches, end) in zip(written.items(), logs, strict=True):
            now = batches[step] if step < len(batches) else [end] if step == len(batches) and end else []
            batch += writes(id_, now, before=before)
            before += now
        if not batch and step >= max(len(batches) for batches, _ in logs):
            break
        await store.write(batch)
    for id_, events in written.items():
        expected = list(enumerate(events, 1))
        assert await reader.events("ada", id_) == expected
        assert await reader.events("ada", id_, after) == expected[after:]
        ended = await reader.response("ada", id_)
        assert ended is not None
        assert (ended.outcome is not None) == (bool(events) and isinstance(events[-1], Finished | Failed))
