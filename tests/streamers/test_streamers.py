"""Streamers between a real ``generate`` on a thread and consumers on an event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterable
from functools import partial
from typing import Any, TypeVar

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from causerie.streamers import BatchTextStreamer, RawStreamer
from tests.streamers.support import END, Parrot, model, tokenizer

T = TypeVar("T")
TEXTS = ["Grüße, 世界! 👩‍👩‍👧 é", "short", ""]


@pytest.fixture(scope="module")
def llama() -> Any:
    return model()


def prompts(count: int) -> Any:
    return tokenizer()(["Hello, you", "Hi", "What?"][:count], return_tensors="pt", padding=True)


def saying(texts: list[bytes], **more: Any) -> dict[str, Any]:
    """Arguments of ``generate`` for rows that say ``texts`` and end."""
    inputs = prompts(len(texts))
    inputs.pop("token_type_ids", None)
    parrot = Parrot(texts, inputs["input_ids"].shape[1])
    return {**inputs, "logits_processor": [parrot], "max_new_tokens": 60, "do_sample": False, **more}


def started(streamer: RawStreamer | BatchTextStreamer, llama: Any, **arguments: Any) -> asyncio.Future[Any]:
    return asyncio.get_running_loop().run_in_executor(None, partial(streamer.run, llama.generate, **arguments))


async def gather(stream: AsyncIterable[T]) -> list[T]:
    return [item async for item in stream]


async def test_raw_steps_are_the_rows_of_generate_without_their_prompts(llama: Any) -> None:
    streamer = RawStreamer()
    arguments = saying([text.encode() for text in TEXTS])
    done = started(streamer, llama, **arguments)
    steps = await gather(streamer)
    whole = await done
    length = arguments["input_ids"].shape[1]
    assert torch.equal(torch.tensor(steps).T, whole[:, length:])


async def test_each_row_has_its_own_text_up_to_its_own_end(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), len(TEXTS))
    done = started(streamer, llama, **saying([text.encode() for text in TEXTS]))
    rows = await asyncio.gather(*map(gather, streamer.rows))
    await done
    assert ["".join(row) for row in rows] == TEXTS
    assert rows[1] == list("short")
    assert all("\ufffd" not in piece for piece in rows[0])


async def test_steps_give_none_for_rows_that_have_ended(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 2)
    done = started(streamer, llama, **saying([b"ab", b"wxyz"]))
    assert await gather(streamer) == [["a", "w"], ["b", "x"], ["", "y"], [None, "z"], [None, ""]]
    await done


async def test_a_row_that_is_left_gives_none_in_steps_and_the_last_to_be_left_stops_generation(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 2)
    arguments = saying([b"x" * 900, b"y" * 900], max_new_tokens=900)
    done = started(streamer, llama, **arguments)
    steps = aiter(streamer)
    assert await anext(steps) == ["x", "y"]
    await streamer.rows[0].aclose()
    async for step in steps:
        if step[0] is None:
            assert step[1] == "y"
            break
    await streamer.rows[1].aclose()
    whole = await asyncio.wait_for(done, 30)
    assert whole.shape[1] - arguments["input_ids"].shape[1] < 900
    # How many steps were on their way just then is chance; that they end is not.
    assert all(step[0] is None for step in [step async for step in steps])


async def test_bytes_that_are_no_character_come_at_the_end(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 1)
    done = started(streamer, llama, **saying(["é".encode()[:1]], max_new_tokens=1))
    assert await gather(streamer.rows[0]) == ["\ufffd"]
    await done


async def test_control_tokens_give_no_text_and_more_than_one_may_end(llama: Any) -> None:
    said = b"ab"
    parrot_arguments = saying([said])
    parrot_arguments["logits_processor"][0].texts = [[97, 257, 98]]
    streamer = BatchTextStreamer(tokenizer(), 1)
    done = started(streamer, llama, **parrot_arguments)
    assert "".join(await gather(streamer.rows[0])) == "ab"
    await done
    ending = BatchTextStreamer(tokenizer(), 1, end_ids=[END, 257])
    done = started(ending, llama, **parrot_arguments)
    assert "".join(await gather(ending.rows[0])) == "a"
    await done


async def test_text_arrives_while_generate_still_runs(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 1)
    done = started(streamer, llama, **saying([b"x" * 500], max_new_tokens=500))
    assert await anext(streamer.rows[0]) == "x"
    assert not done.done()
    await streamer.rows[0].aclose()
    await done


async def test_generation_stops_when_the_last_consumer_leaves_and_not_before(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 2)
    arguments = saying([b"x" * 900, b"y" * 900], max_new_tokens=900)
    done = started(streamer, llama, **arguments)
    await anext(streamer.rows[0])
    await streamer.rows[0].aclose()
    assert [await anext(streamer.rows[1]) for _ in range(30)] == ["y"] * 30
    waiting = asyncio.ensure_future(gather(streamer.rows[1]))
    await asyncio.sleep(0.01)
    waiting.cancel()
    whole = await asyncio.wait_for(done, 30)
    assert whole.shape[1] - arguments["input_ids"].shape[1] < 900
    assert await gather(streamer.rows[0]) == []


@pytest.mark.parametrize("kind", ["raw", "steps"])
async def test_leaving_a_whole_streamer_stops_generation(llama: Any, kind: str) -> None:
    streamer = RawStreamer() if kind == "raw" else BatchTextStreamer(tokenizer(), 1)
    arguments = saying([b"x" * 900], max_new_tokens=900)
    done = started(streamer, llama, **arguments)
    async for _ in streamer:
        break
    await streamer.aclose()
    whole = await asyncio.wait_for(done, 30)
    assert whole.shape[1] - arguments["input_ids"].shape[1] < 900


async def test_what_generate_raises_reaches_every_consumer_after_its_text(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 2)
    arguments = saying([b"abc", b""])
    arguments["logits_processor"].append(_Fails(after=arguments["input_ids"].shape[1] + 2))
    done = started(streamer, llama, **arguments)
    said: list[str] = []
    with pytest.raises(ArithmeticError, match="worn out"):
        async for text in streamer.rows[0]:
            said.append(text)
    assert said == ["a", "b"]
    assert await gather(streamer.rows[1]) == []
    assert await done is None


async def test_what_ends_the_thread_ends_the_consumers_too() -> None:
    streamer, ended = RawStreamer(), []

    def generate(**_: Any) -> None:
        raise SystemExit(3)

    def run() -> None:
        try:
            streamer.run(generate)
        except SystemExit as error:
            ended.append(error.code)

    async with asyncio.timeout(10):
        await asyncio.to_thread(run)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await gather(streamer)
    assert ended == [3]


class _Fails(torch.nn.Module):
    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= self.after:
            raise ArithmeticError("worn out")
        return scores


async def test_a_refusal_of_generate_reaches_the_consumer(llama: Any) -> None:
    streamer = RawStreamer()
    done = started(streamer, llama, **saying([b"abc"], num_beams=2))
    with pytest.raises(ValueError, match="beam"):
        await gather(streamer)
    await done


async def test_a_batch_of_the_wrong_size_is_an_error_and_not_silence(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 2)
    done = started(streamer, llama, **saying([b"abc"]))
    with pytest.raises(ValueError, match="made for 2 rows"):
        await gather(streamer.rows[0])
    await done


async def test_several_sequences_of_one_prompt_are_rows(llama: Any) -> None:
    streamer = BatchTextStreamer(tokenizer(), 2)
    arguments = saying([b"ab", b"cd"])
    arguments = {
        key: value[:1] if key in ("input_ids", "attention_mask") else value for key, value in arguments.items()
    }
    arguments |= {"num_return_sequences": 2, "do_sample": True}
    done = started(streamer, llama, **arguments)
    assert ["".join(row) for row in await asyncio.gather(*map(gather, streamer.rows))] == ["ab", "cd"]
    await done


async def test_other_stopping_criteria_are_kept(llama: Any) -> None:
    streamer = RawStreamer()
    arguments = saying([b"abcdef"])
    limit = arguments["input_ids"].shape[1] + 2
    done = started(streamer, llama, **arguments, stopping_criteria=[lambda ids, scores: ids.shape[1] >= limit])
    assert await gather(streamer) == [[97], [98]]
    await done


def test_a_loop_that_is_gone_stops_generation(llama: Any) -> None:
    async def make() -> RawStreamer:
        return RawStreamer()

    streamer = asyncio.run(make())
    arguments = saying([b"x" * 900], max_new_tokens=900)
    whole: Any = streamer.run(llama.generate, **arguments)
    assert whole.shape[1] - arguments["input_ids"].shape[1] < 10


def test_importing_loads_no_torch() -> None:
    code = "import sys, causerie.streamers; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
