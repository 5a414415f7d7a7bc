"""The transformers engine on small GPT-2 and Llama models that the test makes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from causerie.engines.base import EndReason, Engine, EngineConfig
from causerie.engines.transformers import TransformersEngine
from causerie.engines.transformers_batching import PAGE
from causerie.errors import ModelUnavailable
from causerie.types import SamplingParams
from tests.engines import tiny
from tests.engines.conformance import GREEDY, EngineConformance, Recorder

BYTES_PER_TOKEN = 2 * 2 * 32 * 2
"""Keys and values, 2 layers, 32 wide, 2 bytes."""
PROMPT = [index * 37 % tiny.VOCABULARY for index in range(1, 101)]

Maker = Callable[..., TransformersEngine]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {
        "gpt2": tiny.save(tiny.gpt2(), root / "gpt2"),
        "llama": tiny.save(tiny.llama(), root / "llama"),
    }


@pytest.fixture(params=["gpt2", "llama"])
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def make(folder: Path, device: str = "cpu", **changes: Any) -> TransformersEngine:
    config = EngineConfig(
        folder=folder,
        context_window=1024,
        eos_token_ids=frozenset({0}),
        kv_bytes_per_token=BYTES_PER_TOKEN,
        kv_cache_bytes=4096 * BYTES_PER_TOKEN * 2,
        max_sequences=16,
    )
    return TransformersEngine(replace(config, **changes), device=device)


@pytest.fixture
def started() -> Iterator[Callable[..., tuple[TransformersEngine, Recorder]]]:
    running: list[TransformersEngine] = []

    def start(folder: Path, **changes: Any) -> tuple[TransformersEngine, Recorder]:
        engine, recorder = make(folder, **changes), Recorder()
        engine.start(recorder)
        running.append(engine)
        return engine, recorder

    yield start
    for engine in running:
        engine.stop()


class TestConformance(EngineConformance):
    @pytest.fixture
    def new_engine(self, folder: Path) -> Callable[[], Engine]:
        return lambda: make(folder)

    @pytest.fixture
    def prompt(self) -> list[int]:
        return PROMPT


Started = Callable[..., tuple[TransformersEngine, Recorder]]


def test_greedy_ids_are_those_of_generate(folder: Path, started: Started) -> None:
    engine, recorder = started(folder)
    prompts = {number: PROMPT[: 7 * number] for number in range(1, 8)}
    for number, prompt in prompts.items():
        engine.submit(number, prompt, replace(GREEDY, max_tokens=24))
    recorder.wait_ended(*prompts)
    model = tiny.gpt2() if folder.name == "gpt2" else tiny.llama()
    for number, prompt in prompts.items():
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=24,
            eos_token_id=-1,
            pad_token_id=0,
        )
        assert recorder.ids(number) == whole[0, len(prompt) :].tolist()


def test_end_of_text_ends_it_and_ignore_eos_does_not(folders: dict[str, Path], started: Started) -> None:
    engine, recorder = started(folders["llama"])
    engine.submit(1, PROMPT, GREEDY)
    recorder.wait_ended(1)
    said = recorder.ids(1)
    ending, other = started(folders["llama"], eos_token_ids=frozenset({said[3]}))
    ending.submit(1, PROMPT, replace(GREEDY, ignore_eos=False))
    ending.submit(2, PROMPT, GREEDY)
    other.wait_ended(1, 2)
    assert other.ends(1) == [EndReason.STOP]
    assert other.ids(1) == said[: said.index(said[3]) + 1]
    assert other.ids(2) == said


def test_each_request_of_a_batch_has_its_own_parameters(folders: dict[str, Path], started: Started) -> None:
    engine, recorder = started(folders["llama"])
    sampled = SamplingParams(max_tokens=40, ignore_eos=True, seed=11)
    requests = {
        1: GREEDY,
        2: replace(sampled, temperature=5.0),
        3: replace(sampled, temperature=5.0, top_k=1),
        4: replace(sampled, temperature=5.0, top_p=1e-6),
        5: replace(sampled, temperature=5.0, min_p=1.0),
        6: replace(sampled, temperature=1e-9),
        7: replace(sampled, temperature=0.0, frequency_penalty=1000.0),
        8: replace(sampled, temperature=5.0, seed=12),
    }
    for number, sampling in requests.items():
        engine.submit(number, PROMPT, replace(sampling, max_tokens=40))
    recorder.wait_ended(*requests)
    greedy = recorder.ids(1)
    assert all(recorder.ids(number) == greedy for number in (3, 4, 5, 6))
    assert len({tuple(recorder.ids(number)) for number in (1, 2, 7, 8)}) == 4
    assert max(Counter(recorder.ids(7)).values()) == 1
    engine.submit(9, PROMPT, replace(requests[2], max_tokens=40))
    recorder.wait_ended(9)
    assert recorder.ids(9) == recorder.ids(2)


def test_an_exception_in_the_model_ends_its_sequences_and_later_ones_work(
    folders: dict[str, Path], started: Started
) -> None:
    engine, recorder = started(folders["gpt2"])
    engine.submit(1, PROMPT, GREEDY)
    recorder.wait_ended(1)
    broken = engine._model.transformer.h[1].register_forward_pre_hook(_fail)
    engine.submit(2, PROMPT, GREEDY)
    engine.submit(3, PROMPT[:5], GREEDY)
    recorder.wait_ended(2, 3)
    broken.remove()
    engine.submit(4, PROMPT, GREEDY)
    recorder.wait_ended(4)
    recorder.check(1, 2, 3, 4)
    assert recorder.ends(2) == recorder.ends(3) == [EndReason.ERROR]
    assert all("/" not in update.detail and update.detail for update in recorder.of(2) if update.ended)
    assert recorder.ids(4) == recorder.ids(1)


def _fail(*_: object) -> None:
    raise RuntimeError("injected at /some/path")


def test_a_model_that_computes_no_numbers_is_an_error(folders: dict[str, Path], started: Started) -> None:
    engine, recorder = started(folders["gpt2"])
    hook = engine._model.lm_head.register_forward_hook(lambda module, given, logits: logits * torch.nan)
    engine.submit(1, PROMPT, GREEDY)
    recorder.wait_ended(1)
    hook.remove()
    assert recorder.ends(1) == [EndReason.ERROR]
    assert not recorder.ids(1)


def test_a_cache_of_a_few_blocks_ends_sixteen_streams_truthfully(folder: Path, started: Started) -> None:
    engine, recorder = started(folder, kv_cache_bytes=6 * PAGE * BYTES_PER_TOKEN * 2)
    roomy, expected = started(folder)
    assert engine.info.kv_tokens == 6 * PAGE
    sampling = replace(GREEDY, max_tokens=60)
    for number in range(16):
        engine.submit(number, PROMPT[number : number + 40], sampling)
        roomy.submit(number, PROMPT[number : number + 40], sampling)
    recorder.wait_ended(*range(16))
    expected.wait_ended(*range(16))
    recorder.check(*range(16))
    for number in range(16):
        assert recorder.ends(number) == [EndReason.LENGTH]
        assert recorder.ids(number) == expected.ids(number)


def test_what_the_cache_cannot_hold_ends_out_of_memory_and_never_finished(
    folders: dict[str, Path], started: Started
) -> None:
    engine, recorder = started(folders["gpt2"], kv_cache_bytes=2 * PAGE * BYTES_PER_TOKEN * 2)
    engine.submit(1, PROMPT[:40], replace(GREEDY, max_tokens=200))
    engine.submit(2, PROMPT, GREEDY)
    engine.submit(3, PROMPT[:20], GREEDY)
    recorder.wait_ended(1, 2, 3)
    recorder.check(1, 2, 3)
    assert recorder.ends(1) == recorder.ends(2) == [EndReason.OUT_OF_MEMORY]
    assert len(recorder.ids(1)) == 2 * PAGE - 40 + 1
    assert not recorder.ids(2)
    assert recorder.ends(3) == [EndReason.LENGTH]


@pytest.mark.parametrize(
    "prompt", [[], [-1], [tiny.VOCABULARY], [1] * 1024], ids=["empty", "negative", "unknown", "long"]
)
def test_a_prompt_that_would_crash_the_model_is_refused_alone(
    folders: dict[str, Path], started: Started, prompt: list[int]
) -> None:
    engine, recorder = started(folders["gpt2"])
    engine.submit(1, PROMPT, GREEDY)
    engine.submit(2, prompt, GREEDY)
    recorder.wait_ended(1, 2)
    assert recorder.ends(1) == [EndReason.LENGTH]
    assert recorder.ends(2) == [EndReason.ERROR]
    assert recorder.of(2)[0].detail


def test_the_context_window_ends_an_answer_that_would_cross_it(folders: dict[str, Path], started: Started) -> None:
    engine, recorder = started(folders["gpt2"], context_window=1024)
    prompt = (PROMPT * 11)[:1010]
    engine.submit(1, prompt, replace(GREEDY, max_tokens=100))
    recorder.wait_ended(1)
    assert recorder.ends(1) == [EndReason.LENGTH]
    assert len(recorder.ids(1)) == 14


def test_log_probabilities_are_the_models_own(folders: dict[str, Path], started: Started) -> None:
    engine, recorder = started(folders["llama"])
    reshaped = replace(GREEDY, temperature=3.0, top_k=5, repetition_penalty=2.0, seed=1, logprobs=4)
    engine.submit(1, PROMPT, reshaped)
    recorder.wait_ended(1)
    said = recorder.ids(1)
    with torch.no_grad():
        logits = tiny.llama()(torch.tensor([PROMPT + said])).logits[0, len(PROMPT) - 1 : -1]
    expected = torch.log_softmax(logits, -1)
    for place, logprob in enumerate(recorder.logprobs(1)):
        assert logprob.logprob == pytest.approx(float(expected[place, said[place]]), abs=1e-3)
        assert [id_ for id_, _ in logprob.top] == expected[place].topk(4).indices.tolist()


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(architectures=["T5ForConditionalGeneration"]).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="T5ForConditionalGeneration"):
        make(tmp_path)


def test_a_folder_without_safetensors_is_refused_without_its_path(tmp_path: Path) -> None:
    tiny.gpt2().config.save_pretrained(tmp_path)
    engine = make(tmp_path)
    with pytest.raises(ModelUnavailable) as refused:
        engine.start(Recorder())
    assert str(tmp_path) not in str(refused.value)
    assert "safetensors" in str(refused.value)


def test_an_architecture_that_would_be_miscomputed_is_refused(tmp_path: Path) -> None:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelUnavailable, match="transformers"):
        make(tmp_path).start(Recorder())


def test_remote_code_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "odd", "architectures": ["OddForCausalLM"], "auto_map": {"AutoConfig": "odd.Odd"}}'
    )
    (tmp_path / "odd.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ModelUnavailable):
        make(tmp_path)


def test_an_unknown_device_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelUnavailable, match="abacus"):
        make(folders["gpt2"], device="abacus")


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_extra_importing_names_it(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from causerie.errors import MissingExtra\n"
        "try:\n    import causerie.engines.transformers\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 'pip install "causerie[transformers]"' in run.stdout
