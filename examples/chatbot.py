"""A conversation on a WebSocket: turns in, answers out as they are written, each followed by a frame that ends it.

pip install "causerie[transformers,ray]"
serve run chatbot:app
serve run chatbot:build model=default
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel
from ray import serve
from ray.serve import Application

from causerie.errors import CauserieError
from causerie.streamers import BatchTextStreamer
from causerie.types import Message
from loading import hang_up, load

FINISHED = "<<Response Finished>>"

logger = logging.getLogger("ray.serve")
fastapi_app = FastAPI()


@serve.deployment(max_ongoing_requests=100)
@serve.ingress(fastapi_app)
class Chatbot:
    def __init__(self, model: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.loaded = load(model, "chatbot")

    @fastapi_app.websocket("/")
    async def handle_request(self, ws: WebSocket) -> None:
        await ws.accept()
        turns: asyncio.Queue[str] = asyncio.Queue()
        try:
            # Listens while it answers: only a receive learns that the client has left.
            async with asyncio.TaskGroup() as group:
                group.create_task(self.converse(ws, turns))
                while True:
                    turns.put_nowait(await ws.receive_text())
        except* WebSocketDisconnect:
            logger.info("The client has left.")
        except* CauserieError as errors:
            await hang_up(ws, errors.exceptions[0])

    async def converse(self, ws: WebSocket, turns: "asyncio.Queue[str]") -> None:
        conversation: tuple[Message, ...] = ()
        while True:
            prompt = await turns.get()
            logger.info("Prompt: %r", prompt)
            ids, conversation = self.loaded.encode((*conversation, Message("user", prompt)))
            said = ""
            async with aclosing(self.consume_streamer(ids)) as texts:
                async for text in texts:
                    await ws.send_text(text)
                    said += text
            await ws.send_text(FINISHED)
            conversation += (Message("assistant", said),)

    def generate_text(self, ids: list[int], streamer: BatchTextStreamer) -> None:
        """Runs the model; on a thread, because it blocks."""
        inputs = self.loaded.tokenizer.pad({"input_ids": [ids]}, padding=False, return_tensors="pt")
        streamer.run(self.loaded.model.generate, **inputs, **self.loaded.limits)
        logger.info("The model has stopped.")

    async def consume_streamer(self, ids: list[int]) -> AsyncGenerator[str]:
        """Yields the answer as it is generated. Whoever closes it stops the generation."""
        streamer = BatchTextStreamer(self.loaded.tokenizer, end_ids=self.loaded.end_ids)
        async with aclosing(streamer.rows[0]) as texts:
            self.loop.run_in_executor(None, self.generate_text, ids, streamer)
            async for text in texts:
                logger.info("Token: %r", text)
                yield text


class Arguments(BaseModel, extra="forbid"):
    model: str = "microsoft/DialoGPT-small"


def build(arguments: Arguments) -> Application:
    return Chatbot.bind(arguments.model)


app = Chatbot.bind("microsoft/DialoGPT-small")
