"""The transformers engine on the real default model: what it says is what ``generate`` says on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from causerie.chat.build import engine_config
from causerie.config import Settings
from causerie.engines.base import EndReason
from causerie.engines.transformers import TransformersEngine
from causerie.models.folder import ModelFolder
from causerie.models.resolve import resolve
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
    engine, recorder = (
        TransformersEngine(
            engine_config(folder, Settings(kv_cache_gib=0.25, max_batch_size=8)),
            device="cpu",
        ),
        Recorder(),
    )
    engine.start(recorder)
    yield engine, recorder
    engine.stop()


def encode(folder: ModelFolder, text: str) -> list[int]:
    from tokenizers import Tokenizer

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
