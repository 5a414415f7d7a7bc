"""Text in, text out, as it is written: one deployment of Ray Serve.

pip install "causerie[transformers,ray]"
serve run textbot:app
serve run textbot:build model=default
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
from loading import load, refuse

logger = logging.getLogger("ray.serve")
fastapi_app = FastAPI(exception_handlers={CauserieError: refuse})


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(fastapi_app)
class Textbot:
    def __init__(self, model: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.loaded = load(model, "textbot")

    @fastapi_app.post("/")
    async def handle_request(self, prompt: str) -> StreamingResponse:
        logger.info("Prompt: %r", prompt)
        ids, _ = self.loaded.encode((Message("user", prompt),))
        return StreamingResponse(self.consume_streamer(ids), media_type="text/plain")

    def generate_text(self, ids: list[int], streamer: BatchTextStreamer) -> None:
        """Runs the model; on a thread, because it blocks."""
        inputs = self.loaded.tokenizer.pad({"input_ids": [ids]}, padding=False, return_tensors="pt")
        streamer.run(self.loaded.model.generate, **inputs, **self.loaded.limits)
        logger.info("The model has stopped.")

    async def consume_streamer(self, ids: list[int]) -> AsyncIterator[str]:
        """Yields the answer as it is generated. Whoever stops iterating stops the generation."""
        streamer = BatchTextStreamer(self.loaded.tokenizer, end_ids=self.loaded.end_ids)
        async with aclosing(streamer.rows[0]) as texts:
            # Started here and not by the caller, so that there is no moment at which it runs and nobody would stop it.
            self.loop.run_in_executor(None, self.generate_text, ids, streamer)
            async for text in texts:
                logger.info("Token: %r", text)
                yield text


class Arguments(BaseModel, extra="forbid"):
    model: str = "microsoft/DialoGPT-small"


def build(arguments: Arguments) -> Application:
    return Textbot.bind(arguments.model)


app = Textbot.bind("microsoft/DialoGPT-small")
