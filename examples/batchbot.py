"""Text in, text out, where prompts that come together share the model's steps.

pip install "causerie[transformers,ray]"
serve run batchbot:app
serve run batchbot:build model=default
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from starlette.responses import StreamingResponse

from causerie.errors import CauserieError
from causerie.streamers import BatchTextStreamer
from causerie.types import Message
from loading import LoadedModel, Prompt, load, refuse

logger = logging.getLogger("ray.serve")
fastapi_app = FastAPI(exception_handlers={CauserieError: refuse})


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(fastapi_app)
class Batchbot:
    def __init__(self, model: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.loaded = load(model, "batchbot")
        if isinstance(self.loaded, LoadedModel):
            # Prompts of different lengths need it; on the left, so that every answer begins right after its prompt.
            self.loaded.tokenizer.pad_token = self.loaded.tokenizer.eos_token
            self.loaded.tokenizer.padding_side = "left"

    @fastapi_app.post("/")
    async def handle_request(self, prompt: str) -> StreamingResponse:
        logger.info("Prompt: %r", prompt)
        # Encoded before it joins a batch: one that is refused should not fail the others.
        ids, _ = self.loaded.encode((Message("user", prompt),))
        return StreamingResponse(self.follow(Prompt(ids)), media_type="text/plain")

    async def follow(self, prompt: Prompt) -> AsyncIterator[str]:
        """This prompt's own part of what its batch yields."""
        try:
            async for text in self.run_model(prompt):
                if text:
                    yield text
        finally:
            prompt.left = True

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.2)
    async def run_model(self, prompts: list[Prompt]) -> AsyncIterator[list[str | type[StopIteration]]]:
        """Answers a batch: a list per step, with StopIteration for an answer that has ended."""
        streamer = BatchTextStreamer(self.loaded.tokenizer, len(prompts), end_ids=self.loaded.end_ids)
        async with aclosing(streamer):
            self.loop.run_in_executor(None, self.generate_text, prompts, streamer)
            async for texts in self.consume_streamer(streamer):
                yield [
                    StopIteration if text is None or prompt.left else text
                    for prompt, text in zip(prompts, texts, strict=True)
                ]
                for prompt, row in zip(prompts, streamer.rows, strict=True):
                    if prompt.left:
                        await row.aclose()

    def generate_text(self, prompts: list[Prompt], streamer: BatchTextStreamer) -> None:
        """Runs the model; on a thread, because it blocks."""
        ids = [prompt.ids for prompt in prompts]
        inputs = self.loaded.tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        streamer.run(self.loaded.model.generate, **inputs, **self.loaded.limits)
        logger.info("The model has stopped.")

    async def consume_streamer(self, streamer: BatchTextStreamer) -> AsyncIterator[list[str | None]]:
        """Yields each step's texts, None for a row that has ended or been left."""
        async for texts in streamer:
            logger.info("Tokens: %r", texts)
            yield texts


class Arguments(BaseModel, extra="forbid"):
    model: str = "microsoft/DialoGPT-small"


def build(arguments: Arguments) -> Application:
    return Batchbot.bind(arguments.model)


app = Batchbot.bind("microsoft/DialoGPT-small")
