"""The raw engine's own loop, ``step()`` and ``read()`` only, in a process of its own.

It idles on its standard input while another system is measured. One JSON object a line: ``{"do": method,
…arguments}`` in, its result out.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import openvino

from causerie.chat.build import openvino_engine
from causerie.config import Settings
from causerie.engines import openvino_runtime
from causerie.models.precision import PRECISIONS, Precision
from causerie.models.resolve import resolve
from causerie.types import SamplingParams


class RawEngine:
    """OpenVINO GenAI's continuous batching with the server's own model folder, scheduler and request settings.

    ``precision`` replaces what the settings' precision means; none: as the server would run.
    """

    def __init__(self, settings: Settings, precision: Precision | None) -> None:
        if precision is not None:
            PRECISIONS[settings.precision] = precision
        chosen = PRECISIONS[settings.precision]
        folder = resolve(settings.model, form=chosen.form, engine="openvino")
        self._setup = openvino_engine(folder, settings).setup
        self._pipeline = openvino_runtime.pipeline(self._setup)
        self._requests = 0

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, Any]:
        """Run all prompts at once, ``tokens`` each. Seconds from the first submit on; CPU seconds of the process."""
        config = self._config(tokens)
        cpu = _cpu()
        begin = time.perf_counter()
        waiting = {index: self._submit(prompt, config) for index, prompt in enumerate(prompts)}
        first = [0.0] * len(prompts)
        count = 0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter() - begin
            for index, handle in waiting.items():
                if handle.can_read():
                    for output in handle.read().values():
                        count += len(output.generated_ids)
                    first[index] = first[index] or now
        return {"tokens": count, "seconds": time.perf_counter() - begin, "first": first, "cpu": _cpu() - cpu}

    def forced(
        self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], streams: int
    ) -> list[list[tuple[int, float]]]:
        """For every position of every text: the token that the engine would choose there, and its log-probability.

        ``streams`` texts run at once, by decode steps as in serving. Where the engine's choice is not the text's,
        its request is cancelled and begun again behind the text's own token; the prefix cache makes that cheap.
        """
        found: list[list[tuple[int, float]]] = [[] for _ in texts]
        todo = list(range(len(texts)))[::-1]
        running: dict[int, Any] = {}
        while todo or running:
            while todo and len(running) < streams:
                index = todo.pop()
                running[index] = self._submit_behind(prompts[index], texts[index], 0)
            self._pipeline.step()
            for index, handle in list(running.items()):
                if not handle.can_read():
                    continue
                (output,) = handle.read().values()
                (chosen,), (logprob,) = output.generated_ids, output.generated_log_probs
                found[index].append((int(chosen), float(logprob)))
                at = len(found[index])
                if at == len(texts[index]):
                    del running[index]
                elif chosen != texts[index][at - 1]:
                    handle.cancel()
                    running[index] = self._submit_behind(prompts[index], texts[index], at)
        return found

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        """The engine's own greedy answers, one prompt at a time."""
        answers = []
        for prompt in prompts:
            handle = self._submit(prompt, self._config(tokens))
            answer: list[int] = []
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                if handle.can_read():
                    answer.extend(int(i) for output in handle.read().values() for i in output.generated_ids)
            answers.append(answer)
        return answers

    def _submit_behind(self, prompt: Sequence[int], text: Sequence[int], at: int) -> Any:
        return self._submit([*prompt, *text[:at]], self._config(len(text) - at, logprobs=0))

    def _submit(self, prompt: Sequence[int], config: Any) -> Any:
        ids = np.array([prompt], dtype=np.int64)
        self._requests += 1
        return self._pipeline.add_request(self._requests, openvino.Tensor(ids), config)

    def _config(self, tokens: int, logprobs: int | None = None) -> Any:
        sampling = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True, logprobs=logprobs)
        return openvino_runtime.generation(sampling, self._setup.eos_token_ids)


class RawError(Exception):
    """The runtime failed at what it was asked for, or cannot be started with such options."""


class RawProcess:
    """A ``RawEngine`` in a child process, which takes no processor time between two calls."""

    def __init__(self, settings: Settings, precision: Precision | None = None) -> None:
        begin = time.perf_counter()
        wanted = None if precision is None else asdict(precision)
        command = [sys.executable, "-m", "benchmarks.raw", settings.model_dump_json(), json.dumps(wanted)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()
        self.load_seconds = time.perf_counter() - begin

    @property
    def pid(self) -> int:
        return self._child.pid

    def call(self, do: str, **arguments: Any) -> Any:
        """The result of ``RawEngine.<do>(**arguments)``."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RawError(f"The raw engine's process ended with code {self._child.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            raise RawError(answer["error"])
        return answer["result"]

    def __enter__(self) -> RawProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.communicate(timeout=60)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    settings, precision = (json.loads(argument) for argument in sys.argv[1:])
    engine = RawEngine(Settings(**settings), None if precision is None else Precision(**precision))
    print(json.dumps({"result": None}), flush=True)
    for line in sys.stdin:
        call = json.loads(line)
        try:
            answer = {"result": getattr(engine, call.pop("do"))(**call)}
        except RuntimeError as error:
            answer = {"error": str(error).strip().splitlines()[-1]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
