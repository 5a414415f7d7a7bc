"""Our Textbot beside the tutorial's, on the same model, prompts and machine, in alternation.

The tutorial's Textbot is rebuilt here from its description: per request ``model.generate`` with a
``TextIteratorStreamer`` in a thread of the executor, and a generator that polls the streamer with brief sleeps.
It runs on uvicorn and Starlette without Ray, whose share of the time is small beside the model's. The model is
the default one's float32 weights, or bfloat16 with ``--dtype bfloat16``.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator
from queue import Empty
from typing import TYPE_CHECKING, Any

from benchmarks import load, prompts
from benchmarks.report import finish, machine_line, percentile, spread, table
from benchmarks.server import Server

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import StreamingResponse

TOKENS = 64


class Textbot:
    """The tutorial's deployment."""

    def __init__(self, dtype: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from causerie.models.cache import cache_root
        from causerie.models.default import fetch_default
        from causerie.models.progress import StderrProgress

        gguf = fetch_default(cache_root(), StderrProgress())
        kwargs = {"gguf_file": gguf.name}
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **kwargs)
        self._model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=getattr(torch, dtype), **kwargs)

    async def handle_request(self, request: Request) -> StreamingResponse:
        from starlette.responses import StreamingResponse
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self._tokenizer, timeout=0, skip_prompt=True, skip_special_tokens=True)
        prompt, tokens = request.query_params["prompt"], int(request.query_params["max_tokens"])
        asyncio.get_running_loop().run_in_executor(None, self.generate_text, prompt, tokens, streamer)
        return StreamingResponse(self.consume_streamer(streamer), media_type="text/plain")

    def generate_text(self, prompt: str, tokens: int, streamer: Any) -> None:
        inputs = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        self._model.generate(
            **inputs, streamer=streamer, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=2
        )

    async def consume_streamer(self, streamer: Any) -> AsyncIterator[str]:
        while True:
            try:
                for text in streamer:
                    yield text
                return
            except Empty:
                await asyncio.sleep(0.001)


def serve(port: int, dtype: str) -> None:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    bot = Textbot(dtype)
    routes = [
        Route("/", bot.handle_request, methods=["POST"]),
        Route("/ready", lambda _: PlainTextResponse("ready")),
    ]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="error")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=int, metavar="PORT", help="only serve the tutorial's Textbot")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.dtype)
        return
    rows = []
    command = [sys.executable, "-m", "benchmarks.tutorial", "--dtype", arguments.dtype, "--serve"]
    with Server(command) as tutorial, Server.causerie() as ours:
        for target in (tutorial.target, ours.target):
            load.run_textbot(target, prompts.distinct(1, 0), 8)
        for streams in arguments.streams:
            mine, theirs = [], []
            for turn in range(arguments.rounds):
                turns = prompts.distinct(streams, 1000 * streams + turn)
                mine.append(load.run_textbot(ours.target, turns, TOKENS))
                theirs.append(load.run_textbot(tutorial.target, turns, TOKENS))
            rates = [[run.rate for run in runs] for runs in (mine, theirs)]
            rows.append(
                (
                    streams,
                    *(statistics.median(values) for values in rates),
                    f"{statistics.median(rates[0]) / statistics.median(rates[1]):.1f}",
                    spread([one / other for one, other in zip(*rates, strict=True)]),
                    *(percentile((first for run in runs for first in run.first), 1.0) for runs in (mine, theirs)),
                )
            )
    headers = (
        *("streams", "causerie tok/s", "tutorial tok/s", "ratio", "pairs: median (range)"),
        *("last first text, s", "tutorial's, s"),
    )
    print(machine_line() + "\n")
    print(f"The tutorial's Textbot in {arguments.dtype}, {TOKENS} tokens a request.\n")
    print(table(headers, rows))
    finish("tutorial", {"dtype": arguments.dtype, "rows": [dict(zip(headers, row, strict=True)) for row in rows]})


if __name__ == "__main__":
    main()
