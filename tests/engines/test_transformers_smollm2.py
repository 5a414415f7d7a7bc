"""The transformers engine on the real default model: what it says is what ``generate`` says on the same weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from causerie.chat.build import engine_config
from causerie.config import Settings
from causerie.engines.base import EndReason
from causerie.engines.transformers import TransformersEngine
from causerie.models.folder import ModelFolder
from causerie.models.resolve import resolve
from causerie.text.model import TextModel
from causerie.types import SamplingParams
from causerie.wire.json_schema import read_schema
from tests.engines.conformance import GREEDY, Recorder

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
]


@pytest.fixture(scope="module")
def folder() -> ModelFolder:
    return resolve("default", form="f16", engine="transformers")


@pytest.fixture(scope="module")
def engine(folder: ModelFolder) -> Iterator[tuple[TransformersEngine, Recorder]]:
    torch.set_num_threads(1)  # a second one waits long on a busy machine
    text = TextModel.load(folder.path, eos_token_ids=folder.eos_token_ids, bos_token_id=folder.bos_token_id)
    engine, recorder = (
        TransformersEngine(
            engine_config(folder, Settings(kv_cache_gib=0.25, max_batch_size=8), text),
            device="cpu",
        ),
        Recorder(),
    )
    engine.start(recorder)
    yield engine, recorder
    engine.stop()


def encode(folder: ModelFolder, text: str) -> list[int]:
    return list(Tokenizer.from_file(str(folder.path / "tokenizer.json")).encode(text).ids)


def test_greedy_ids_are_those_of_generate(folder: ModelFolder, engine: tuple[TransformersEngine, Recorder]) -> None:
    running, recorder = engine
    prompts = dict(enumerate(encode(folder, text) for text in PROMPTS))
    for number, prompt in prompts.items():
        running.submit(number, prompt, replace(GREEDY, max_tokens=16, ignore_eos=False))
        # One at a time: in a batch, rounding alone can turn a close choice.
        recorder.wait_ended(number)
    model: Any = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
    for number, prompt in prompts.items():
        ids = torch.tensor([prompt])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
        assert recorder.ids(number) == whole[0, len(prompt) :].tolist()
        ended = EndReason.STOP if recorder.ids(number)[-1] in folder.eos_token_ids else EndReason.LENGTH
        assert recorder.ends(number) == [ended]


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 12},
        "age": {"type": "integer", "minimum": 18, "maximum": 99},
        "color": {"enum": ["red", "blue"]},
        "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["name", "age", "color", "points"],
    "$defs": {"point": {"type": ["boolean", "null"]}},
}


def test_answers_are_held_to_a_schema_beside_others_that_are_not(
    folder: ModelFolder, engine: tuple[TransformersEngine, Recorder]
) -> None:
    running, recorder = engine
    prompt = encode(folder, PROMPTS[0])
    held = SamplingParams(max_tokens=200, temperature=0.0, json_schema=read_schema(SCHEMA, "schema"))
    numbers = {100: held, 101: replace(held, temperature=1.8, top_k=50, seed=3), 102: replace(held, logprobs=2)}
    for number, sampling in numbers.items():
        running.submit(number, prompt, sampling)
    running.submit(103, prompt, replace(GREEDY, max_tokens=16, ignore_eos=False))
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer.json"))
    for number in (*numbers, 103):
        recorder.wait_ended(number)
    for number in numbers:
        assert recorder.ends(number) == [EndReason.STOP]
        Draft202012Validator(SCHEMA).validate(json.loads(tokenizer.decode(recorder.ids(number))))
    assert "Paris" in tokenizer.decode(recorder.ids(103))


def test_answer_held_to_a_schema_and_cut_by_its_limit_says_so(
    folder: ModelFolder, engine: tuple[TransformersEngine, Recorder]
) -> None:
    running, recorder = engine
    sampling = SamplingParams(max_tokens=5, temperature=0.0, json_schema=read_schema(SCHEMA, "schema"))
    running.submit(110, encode(folder, PROMPTS[0]), sampling)
    recorder.wait_ended(110)
    assert recorder.ends(110) == [EndReason.LENGTH] and len(recorder.ids(110)) == 5
