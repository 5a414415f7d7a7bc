"""Faithfulness against speed, for each form of the weights and each option of the runtime.

Faithfulness is measured through the serving path (continuous batching, paged attention, the cache's precision)
against float32 transformers on the default model's own file:

- *greedy*: of the reference's greedy answer (12 tokens, 40 prompts, one at a time), the share of characters up to
  the first difference; its standard error over the prompts stands beside it;
- *top-1*: teacher-forced on natural text, 16 texts at once, the share of positions where the most likely token is
  the reference's; *|Δ logprob|*: the mean difference of that token's log-probability.

Speed is that of the raw loop, 64 tokens for each of 1, 16 and 64 distinct prompts: medians over rounds that go
through all the forms in turn, so that a busy minute of the machine hits all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import load, prompts
from benchmarks.llama_server import LlamaServer
from benchmarks.raw import RawError, RawProcess
from benchmarks.reference import Reference
from benchmarks.report import finish, machine_line, table
from causerie.config import Settings
from causerie.models.cache import cache_root
from causerie.models.default import fetch_default
from causerie.models.precision import PRECISIONS, Precision
from causerie.models.progress import StderrProgress
from causerie.models.resolve import resolve
from causerie.text.model import TextModel
from causerie.types import ChatPrompt, Message, TextPrompt

STREAMS = (1, 16, 64)
ANSWER_TOKENS = 64
GREEDY_TOKENS = 12
HEAD_TOKENS = 12
"""Tokens of a natural text that are given; from there on every position is measured."""

LLAMA_CPP_GREEDY = 0.83
"""llama.cpp's own greedy agreement on the default model's file, by the same measure."""
LEAST_TOP1 = 0.95
MOST_DELTA = 0.1

_HINT, _CACHE, _GROUP = "INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
_WHOLE_ROW = str(2**64 - 1)
_OPTIONS: tuple[dict[str, str], ...] = (
    {_CACHE: "u8"},
    {_CACHE: "f16"},
    {_CACHE: "bf16"},
    {_HINT: "bf16", _CACHE: "f16"},
    {_HINT: "f16", _CACHE: "f16"},
    {_HINT: "f32", _CACHE: "u8"},
    {_HINT: "f32", _CACHE: "f16"},
    {_HINT: "f32", _CACHE: "f32"},
)
_GROUPS: tuple[dict[str, str], ...] = (
    {_CACHE: "f16", _GROUP: "0"},
    {_CACHE: "f16", _GROUP: _WHOLE_ROW},
    {_HINT: "f32", _CACHE: "f16", _GROUP: "0"},
    {_HINT: "f32", _CACHE: "f16", _GROUP: _WHOLE_ROW},
)
CANDIDATES: tuple[Precision, ...] = (
    *(Precision("f16", options) for options in _OPTIONS),
    *(Precision("q8_0", options) for options in (*_OPTIONS, *_GROUPS)),
)


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """See the module's docstring."""

    greedy: float
    greedy_error: float
    top1: float
    delta: float


class Examination:
    """The reference's answers, made once, and the comparison of an engine's with them."""

    def __init__(self, text: TextModel, reference: Reference, questions: int, passages: int) -> None:
        self._text = text
        self._prompts = [chat_ids(text, question) for question in prompts.QUESTIONS[:questions]]
        answers = [reference.greedy(prompt, GREEDY_TOKENS) for prompt in self._prompts]
        self._answers = [self._say(answer) for answer in answers]
        ids = [text.encode(TextPrompt(passage)) for passage in prompts.PASSAGES[:passages]]
        self._heads = [passage[:HEAD_TOKENS] for passage in ids]
        self._tails = [passage[HEAD_TOKENS:] for passage in ids]
        pairs = zip(self._heads, self._tails, strict=True)
        self._truth = np.concatenate([reference.log_probabilities(head, tail) for head, tail in pairs])

    @property
    def positions(self) -> int:
        return len(self._truth)

    def of(self, engine: RawProcess) -> Faithfulness:
        said = engine.call("greedy", prompts=self._prompts, tokens=GREEDY_TOKENS)
        return self._judge(said, engine.call("forced", prompts=self._heads, texts=self._tails, streams=16))

    def of_llama(self, server: LlamaServer) -> Faithfulness:
        """llama.cpp's, one text at a time."""
        said = server.greedy(self._prompts, GREEDY_TOKENS)
        return self._judge(said, server.forced(self._heads, self._tails))

    def _judge(self, said: list[list[int]], forced: list[list[tuple[int, float]]]) -> Faithfulness:
        shares = [
            _common(self._say(ids), answer) / len(answer) for ids, answer in zip(said, self._answers, strict=True)
        ]
        chosen = np.array([pair for passage in forced for pair in passage])
        return Faithfulness(
            greedy=statistics.mean(shares),
            greedy_error=statistics.stdev(shares) / len(shares) ** 0.5,
            top1=float((self._truth.argmax(1) == chosen[:, 0]).mean()),
            delta=_mean_delta(self._truth, chosen),
        )

    def _say(self, ids: Sequence[int]) -> str:
        """The text up to the end of the answer, which the raw loop goes past."""
        ids = list(takewhile(lambda id_: id_ not in self._text.eos_token_ids, ids))
        detokenizer = self._text.detokenizer()
        return detokenizer.feed(ids) + detokenizer.flush()


def chat_ids(text: TextModel, question: str) -> list[int]:
    """``question`` as the only user turn, through the model's own template."""
    return text.encode(ChatPrompt((Message("user", question),)))


def _mean_delta(truth: npt.NDArray[np.float32], chosen: npt.NDArray[Any]) -> float:
    expected = truth[np.arange(len(truth)), chosen[:, 0].astype(int)]
    return float(np.abs(expected - chosen[:, 1]).mean())


def _common(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(slots=True)
class Result:
    """One row of the table. ``faithfulness`` is None where the runtime failed.

    It may refuse a combination, which differs by processor, or compute no numbers (float16 overflows in some models).
    """

    name: str
    precision: Precision | None
    """None for another server's row."""
    faithfulness: Faithfulness | None = None
    rates: dict[int, list[float]] = field(default_factory=lambda: {streams: [] for streams in STREAMS})

    def rate(self, streams: int) -> float:
        return statistics.median(self.rates[streams] or [0.0])

    @property
    def enough(self) -> bool:
        """Whether it meets the rule for a default."""
        quality = self.faithfulness
        return (
            self.precision is not None
            and quality is not None
            and quality.greedy >= LLAMA_CPP_GREEDY
            and quality.top1 >= LEAST_TOP1
            and quality.delta <= MOST_DELTA
        )

    @property
    def pace(self) -> float:
        return statistics.geometric_mean(self.rate(streams) for streams in STREAMS) if self.rates[1] else 0.0

    def time(self, engine: RawProcess, text: TextModel, seed: int) -> None:
        for streams in STREAMS:
            ids = [chat_ids(text, turn) for turn in prompts.distinct(streams, seed + streams)]
            run = engine.call("generate", prompts=ids, tokens=ANSWER_TOKENS)
            self.rates[streams].append(run["tokens"] / run["seconds"])

    def time_served(self, target: load.Target, seed: int) -> None:
        for streams in STREAMS:
            self.rates[streams].append(load.run(target, prompts.distinct(streams, seed + streams), ANSWER_TOKENS).rate)


def measure(candidates: Sequence[Precision], rounds: int, llama_server: str | None) -> list[Result]:
    """Faithfulness once, speed in ``rounds`` turns through all candidates."""
    settings = Settings()
    folder = resolve(settings.model, form="f16", engine="openvino", progress=StderrProgress())
    text = TextModel.load(folder.path, eos_token_ids=folder.eos_token_ids, bos_token_id=folder.bos_token_id)
    reference = Reference(fetch_default(cache_root(), StderrProgress()))
    examination = Examination(text, reference, len(prompts.QUESTIONS), len(prompts.PASSAGES))
    del reference
    results = [Result(name_of(precision), precision) for precision in candidates]
    if llama_server:
        results.append(Result("llama.cpp, as its file is, served", None))
    for turn in range(rounds):
        for result in results:
            try:
                if result.precision is None and llama_server:
                    _visit_llama(result, llama_server, examination, seed=1000 * turn)
                elif turn == 0 or result.faithfulness is not None:
                    _visit(result, settings, examination, text, seed=1000 * turn)
            except RawError as error:
                result.faithfulness = None
                print(f"{result.name}: {error}", file=sys.stderr, flush=True)
            rates = "/".join(f"{result.rate(streams):.0f}" for streams in STREAMS)
            print(f"round {turn + 1}: {result.name}: {rates} tokens/s so far", file=sys.stderr, flush=True)
    return results


def _visit(result: Result, settings: Settings, examination: Examination, text: TextModel, seed: int) -> None:
    with RawProcess(settings, result.precision) as engine:
        if result.faithfulness is None:
            result.faithfulness = examination.of(engine)
        result.time(engine, text, seed)


def _visit_llama(result: Result, url: str, examination: Examination, seed: int) -> None:
    if result.faithfulness is None:
        result.faithfulness = examination.of_llama(LlamaServer(url))
    result.time_served(load.Target(url), seed)


def winner(results: Sequence[Result]) -> Result | None:
    """The fastest, by the geometric mean over the numbers of streams, of those that are faithful enough."""
    return max((result for result in results if result.enough), key=lambda r: r.pace, default=None)


def report(results: Sequence[Result]) -> str:
    best = winner(results)
    rows = []
    for result in sorted(results, key=lambda result: -result.pace):
        quality = result.faithfulness
        presets = [name for name, precision in PRECISIONS.items() if precision == result.precision]
        notes = ["meets the rule" * result.enough, "fastest" * (result is best), *presets]
        rows.append(
            (
                result.name,
                f"{quality.greedy:.2f} ±{quality.greedy_error:.2f}" if quality else "fails",
                f"{100 * quality.top1:.1f} %" if quality else "fails",
                f"{quality.delta:.3f}" if quality else "fails",
                *(f"{result.rate(streams):.0f}" for streams in STREAMS),
                f"{result.pace:.0f}",
                "; ".join(note for note in notes if note),
            )
        )
    headers = ("weights and options", "greedy", "top-1", "|Δ logprob|", "tok/s at 1", "at 16", "at 64", "mean", "")
    return table(headers, rows)


def name_of(precision: Precision) -> str:
    """Short, for the table."""
    short = {_HINT: "hint", _CACHE: "cache", _GROUP: "group"}
    values = {_WHOLE_ROW: "row"}
    options = (f"{short[name]} {values.get(value, value)}" for name, value in precision.properties.items())
    return ", ".join((precision.form, *options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="speed runs of each candidate (default 3)")
    parser.add_argument("--only", default="", help="candidates whose name has this, like 'q8_0' or 'cache f16'")
    parser.add_argument("--llama-server", metavar="URL", help="one that runs on the default model's file, for its row")
    arguments = parser.parse_args()
    candidates = [candidate for candidate in CANDIDATES if arguments.only in name_of(candidate)]
    results = measure(candidates, arguments.rounds, arguments.llama_server)
    print(machine_line() + "\n")
    print(report(results))
    best = winner(results)
    rows = [
        {
            "weights": result.name,
            "faithfulness": result.faithfulness and asdict(result.faithfulness),
            "tokens_per_second": {str(streams): result.rates[streams] for streams in STREAMS},
        }
        for result in results
    ]
    finish("precision", {"winner": best and best.name, "rows": rows})


if __name__ == "__main__":
    main()
