"""Reading one token a step beside sequences that generate, on the real default model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from causerie.chat.build import build_text
from causerie.engines.base import EndReason
from causerie.engines.openvino import BLOCK
from causerie.engines.openvino_dictation import Dictated, Dictation
from causerie.engines.stepping import Cancel, Submit
from causerie.models.folder import ModelFolder
from causerie.text.model import TextModel
from causerie.types import SamplingParams, TextPrompt
from tests.engines.test_openvino import Hand, kill_runtime

pytestmark = pytest.mark.model

ENDLESS = SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True)
ASKED = SamplingParams(max_tokens=2, temperature=0.0, ignore_eos=True, logprobs=0)
PLAIN = (
    "The harbour was quiet that morning, and there and then a boat came. The man at the oars said they were a crew. "
)
ODD = 'Größe, Müde 1é2: 你好世界 “naïve” — 😀😁 русский "quoted" \\back\\ {json} \t tab\n\n\x00\x1b[0m\x7f ﬁ '
STREAM, READER, ASKER = 1, 2, 3


class Desk(Hand):
    """One sequence that generates, and a text to be read beside it."""

    def __init__(self, folder: ModelFolder, text: TextModel) -> None:
        super().__init__(folder, text=text)
        self.text = text
        self.step(Submit(STREAM, self.ids_of("Once upon a time"), ENDLESS))
        assert self.gained(STREAM) == 1

    def ids_of(self, text: str) -> list[int]:
        return self.text.encode(TextPrompt(text))

    def gained(self, number: int) -> int:
        return len(self.ids(number)) if number in self.said else 0

    def read(self, number: int, prompt: Sequence[int]) -> int:
        """Have all of ``prompt`` read gently; returns the steps that it took, in each of which the stream went on."""
        before = self.gained(STREAM)
        self.step(Submit(number, prompt, None, gently=True))
        while number not in self.said:
            self.step()
        steps = self.gained(STREAM) - before
        (update,) = self.said[number]
        assert (update.ended, update.ids) == (EndReason.PREFILLED, ())
        return steps

    def cached(self, number: int, prompt: Sequence[int]) -> int | None:
        """How much of ``prompt`` its request finds in the cache."""
        self.step(Submit(number, prompt, ASKED))
        return self.said[number][0].cached_tokens

    def close(self) -> None:
        self.engine._abandon()
        self.engine._close()


@pytest.fixture(scope="module")
def text(default_folder: ModelFolder) -> TextModel:
    return build_text(default_folder)[0]


@pytest.fixture
def desk(default_folder: ModelFolder, text: TextModel) -> Iterator[Desk]:
    desk = Desk(default_folder, text)
    yield desk
    desk.close()


def test_a_piece_is_read_token_by_token_and_found_by_its_request(desk: Desk) -> None:
    prompt = desk.ids_of(PLAIN * 8)[: 5 * BLOCK + 1]
    steps = [desk.read(10 + end, prompt[: end * BLOCK]) for end in range(1, 6)]
    assert all(BLOCK - 2 < count < BLOCK + 4 for count in steps), "the model may have guessed the next one"
    assert desk.cached(ASKER, prompt) == 5 * BLOCK
    assert desk.engine._cache.sure


def test_the_first_of_all_tokens_may_be_a_texts(
    default_folder: ModelFolder, text: TextModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vocabulary = TextModel.vocabulary
    monkeypatch.setattr(TextModel, "vocabulary", lambda self, size: [b"@@@@", *vocabulary(self, size)[1:]])
    desk = Desk(replace(default_folder, eos_token_ids=default_folder.eos_token_ids - {0}), text)
    prompt = [*desk.ids_of(PLAIN)[:10], *[0] * 22, 1000]
    desk.read(READER, prompt[:BLOCK])
    assert not caplog.records
    assert desk.cached(ASKER, prompt) == BLOCK
    desk.close()


def test_what_was_read_gently_is_answered_as_what_was_read_at_once(
    desk: Desk, default_folder: ModelFolder, text: TextModel
) -> None:
    prompt = desk.ids_of(PLAIN * 4)[: 3 * BLOCK + 5]
    desk.read(READER, prompt[: 3 * BLOCK])
    desk.step(Submit(ASKER, prompt, ASKED))
    other = Hand(default_folder)
    other.step(Submit(ASKER, prompt, ASKED))
    gently, at_once = desk.first(ASKER), other.first(ASKER)
    other.engine._close()
    assert gently.id == at_once.id
    assert gently.logprob == pytest.approx(at_once.logprob, abs=0.15)


@pytest.mark.parametrize("sample", [PLAIN, ODD])
def test_any_text_is_read_as_it_is(desk: Desk, sample: str, caplog: pytest.LogCaptureFixture) -> None:
    prompt = desk.ids_of(sample * 12)[: 8 * BLOCK + 1]
    with caplog.at_level(logging.WARNING):
        for end in range(1, 9):
            desk.read(10 + end, prompt[: end * BLOCK])
    assert not caplog.records
    assert desk.cached(ASKER, prompt) == 8 * BLOCK


@pytest.mark.parametrize("at_once", [True, False])
def test_one_that_is_given_up_keeps_what_was_read(desk: Desk, at_once: bool) -> None:
    prompt = desk.ids_of(PLAIN * 4)
    desk.step(Submit(READER, prompt[:BLOCK], None, gently=True))
    for _ in range(9):
        desk.step()
    if at_once:
        desk.step(Cancel(READER), Submit(ASKER, prompt, ASKED))
        cached = desk.said[ASKER][0].cached_tokens
    else:
        desk.step(Cancel(READER))
        cached = desk.cached(ASKER, prompt)
    assert [update.ended for update in desk.said[READER]] == [EndReason.CANCELLED]
    assert cached is not None
    assert 5 < cached < BLOCK
    assert desk.read(READER + 10, prompt[: 2 * BLOCK]) < 2 * BLOCK
    assert desk.engine._cache.sure


def test_where_nobody_is_answered_it_is_read_at_once(desk: Desk) -> None:
    desk.step(Cancel(STREAM))
    prompt = desk.ids_of(PLAIN * 4)[:BLOCK]
    desk.step(Submit(READER, prompt, None, gently=True))
    assert desk.said[READER][-1].ended is EndReason.PREFILLED


def test_when_the_answer_ends_the_rest_is_read_at_once(desk: Desk) -> None:
    prompt = desk.ids_of(PLAIN * 4)[:BLOCK]
    desk.step(Submit(READER, prompt, None, gently=True))
    desk.step(Cancel(STREAM))
    steps = desk.engine.stats().steps
    while READER not in desk.said:
        desk.step()
    assert desk.engine.stats().steps - steps < BLOCK


def test_tokens_that_cannot_be_dictated_are_read_at_once(desk: Desk) -> None:
    control = next(token for token, spelled in enumerate(desk.text.vocabulary(1000)) if not spelled)
    assert desk.read(READER, [control] * BLOCK) == 1
    assert desk.cached(ASKER, [*[control] * BLOCK, 1000]) == BLOCK


def test_a_runtime_that_does_not_say_what_it_was_dictated_reads_whole_pieces_from_then_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = Dictation.begin

    def without_others(self: Dictation, ids: Sequence[int]) -> Dictated | None:
        dictated = begin(self, ids)
        return dictated and dictated._replace(others=frozenset())

    monkeypatch.setattr(Dictation, "begin", without_others)
    prompt = desk.ids_of("Harbour kettle orchard violin museum lantern saddle. " * 20)[: 4 * BLOCK + 1]
    for end in range(1, 5):
        desk.read(10 + end, prompt[: end * BLOCK])
    assert "were not read as they were dictated" in caplog.text
    assert len(caplog.records) == 1
    assert desk.cached(ASKER, prompt) == 4 * BLOCK
    assert desk.engine._cache.sure


def test_a_runtime_that_dies_meanwhile_reads_it_again(desk: Desk) -> None:
    prompt = desk.ids_of(PLAIN * 4)
    desk.step(Submit(READER, prompt[:BLOCK], None, gently=True))
    desk.step()
    kill_runtime(desk.engine)
    desk.step()
    assert desk.said[STREAM][-1].ended is EndReason.ERROR
    desk.step()
    assert [update.ended for update in desk.said[READER]] == [EndReason.PREFILLED]
    assert desk.cached(ASKER, prompt) == BLOCK
