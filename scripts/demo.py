"""What no other server does, in under two minutes: reading while you type, being interrupted, and surviving kill -9.

It starts servers of its own on a free port, with a store of its own, and ends them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
import tempfile
import textwrap
import time
from pathlib import Path

from causerie.client import AsyncAnswer, AsyncClient
from causerie.errors import Interrupted

TYPING_SECONDS = 12.0
"""For a prompt of some 2,000 tokens: faster than anybody types, so that you need not wait."""
KEYSTROKES = 0.05
"""Seconds between two pieces of what is typed."""

_STORY = (
    "In the {nth} year of the harbour the keeper wrote down what the tide had brought: {a} planks, {b} ropes, a letter "
    "in a bottle that nobody could read, and the names of the {c} ships that had passed without a greeting. "
)
_WIDTH = min(shutil.get_terminal_size().columns, 100)


def story(first: int, sentences: int = 34) -> str:
    """Some 2,000 tokens that no other story begins with."""
    lines = [_STORY.format(nth=f"{first + i}th", a=first + 3 * i, b=7 * i + 2, c=i + 4) for i in range(sentences)]
    return f"This is report number {first}. " + "".join(lines) + "\n\nSay in one sentence what this was about."


class Server:
    """``causerie serve`` as a process, on the same port and store each time."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self._port = str(sock.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self._store = str(folder / "demo.sqlite3")
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        arguments = ("serve", "--port", self._port, "--store", self._store, "--log-level", "error")
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "causerie", *arguments, stderr=asyncio.subprocess.PIPE
        )
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if line.startswith(b"url:"):
                return
        raise SystemExit("The server did not start.")

    async def end(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()


def title(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def tell(text: str) -> None:
    print(textwrap.fill(text, _WIDTH, initial_indent="  ", subsequent_indent="  "))


def quote(text: str) -> None:
    flat = " ".join(text.split())
    tell(f"“{flat if len(flat) < 300 else '… ' + flat[-280:]}”")


async def first_token(answer: AsyncAnswer, begun: float) -> float:
    """Milliseconds from ``begun`` to the first piece; the rest is not waited for."""
    await anext(answer)
    passed = (time.perf_counter() - begun) * 1000
    await answer.cancel()
    return passed


async def typing(client: AsyncClient) -> None:
    title("1. The model reads while you type")
    cold = client.chat(max_tokens=32)
    begun = time.perf_counter()
    cold_ms = await first_token(await cold.send(story(100)), begun)
    tell(f"A prompt of 2,000 tokens, sent at once: the first token comes after {cold_ms:,.0f} ms.")
    text, chat = story(500), client.chat(max_tokens=32)
    pieces = round(TYPING_SECONDS / KEYSTROKES)
    size = -(-len(text) // pieces)
    for start in range(0, len(text), size):
        chat.type(text[start : start + size])
        if sys.stdout.isatty():
            done = min(start + size, len(text))
            print(f"\r  Another one is being typed: {done:,} of {len(text):,} characters", end="", flush=True)
        await asyncio.sleep(KEYSTROKES)
    tell("" if sys.stdout.isatty() else f"Another one is being typed, {len(text):,} characters.")
    settled, read = chat.prefilled or (0, 0)
    begun = time.perf_counter()
    typed_ms = await first_token(await chat.send(), begun)
    tell(
        f"Enter. The first token comes after {typed_ms:,.0f} ms: {read:,} of {settled:,} tokens had been read by then."
    )


async def interrupting(client: AsyncClient) -> None:
    title("2. It can be interrupted")
    chat = client.chat(conversation=await client.create_conversation(), max_tokens=400)
    long = await chat.send("Tell me a very long story about the sea.")
    said = ""
    async for piece in long:
        said += piece
        if len(said) > 200:
            break
    quote(said)
    begun = time.perf_counter()
    answer = await chat.send("Stop. Just say hello.")
    first = await anext(answer)
    tell(f"“Stop. Just say hello.” It stops, and {(time.perf_counter() - begun) * 1000:,.0f} ms later says:")
    rest = await asyncio.wait_for(answer.read(), 30)
    quote(first + rest)


async def surviving(client: AsyncClient, server: Server) -> None:
    title("3. It survives kill -9")
    conversation = await client.create_conversation()
    chat = client.chat(conversation=conversation, max_tokens=300)
    answer = await chat.send("Describe a journey across the mountains, day by day.")
    said = ""
    async for piece in answer:
        said += piece
        if len(said) > 250:
            await server.end(signal.SIGKILL)
            break
    quote(said)
    tell(
        "kill -9, in the middle of the word. The server is started again on its store; the client comes back by itself:"
    )
    again = asyncio.create_task(server.start())
    try:
        said += await answer.read()
    except Interrupted as error:
        tell(f"[{error.code}] {error.message} What was delivered, {len(said):,} characters, to the last one:")
        quote(said)
    await again
    chat = client.chat(conversation=conversation, max_tokens=60)
    tell("The conversation goes on:")
    quote(await (await chat.send("Where were you when you were interrupted?")).read())


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        tell("Starting a server. The first time, its model is fetched.")
        await server.start()
        try:
            async with AsyncClient(server.url) as client:
                await client.text("Hi", max_tokens=4).read()
                await typing(client)
                await interrupting(client)
                await surviving(client, server)
        finally:
            await server.end(signal.SIGTERM)
    print()


if __name__ == "__main__":
    os.environ.pop("CAUSERIE_API_KEY", None)
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        sys.exit(130)
