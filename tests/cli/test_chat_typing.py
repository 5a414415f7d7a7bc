"""``causerie chat`` at a terminal: a line is read while it is typed, by a server as by the model of this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from causerie.chat.build import scripted_service
from causerie.cli.dialogue import PlainDialogue
from causerie.cli.line import Line
from causerie.cli.remote import RemoteTalker, ServedDialogue
from causerie.cli.talk import LocalTalker
from causerie.config import Settings
from causerie.engines.scripted import ScriptedEngine
from causerie.types import SamplingParams
from tests.cli.command import DEADLINE
from tests.cli.terminal import Terminal, terminal
from tests.support.server import running_server
from tests.support.service import until

LINE = "The harbour was quiet that morning, and two boats lay against the wall. " * 6
RUBBED_OUT = len("against the wall. ")
BACKSPACE = "\x7f"


class Noting(ScriptedEngine):
    """Repeats its prompt, and keeps what it was asked to read ahead."""

    def __init__(self) -> None:
        super().__init__(lambda prompt: [byte for byte in prompt if byte < 256])
        self.ahead: list[str] = []
        self.read_much = threading.Event()

    def prefill(self, sequence: int, prompt: Sequence[int], *, gently: bool = False) -> None:
        self.ahead.append(bytes(id_ for id_ in prompt if id_ < 256).decode())
        if LINE[:300] in self.ahead[-1]:
            self.read_much.set()
        super().prefill(sequence, prompt, gently=gently)


def type_a_line(screen: Terminal, engine: Noting) -> None:
    screen.wait_for("> ")
    for word in LINE.removesuffix(" ").split(" "):
        screen.type(word + " ")
    assert engine.read_much.wait(DEADLINE), "Enter has not been pressed yet"
    screen.type(BACKSPACE * RUBBED_OUT + "still.\n")
    screen.wait_for("user\n" + LINE[:-RUBBED_OUT] + "still[.]")


async def test_a_server_reads_a_line_before_enter() -> None:
    engine = Noting()
    async with running_server(scripted_service(Settings(), engine)) as url:
        with terminal("chat", "--server", url) as screen:
            await asyncio.to_thread(type_a_line, screen, engine)


async def test_the_model_of_this_process_reads_a_line_before_enter() -> None:
    engine = Noting()
    talker = LocalTalker(scripted_service(Settings(), engine), SamplingParams(max_tokens=1000))
    await talker.start()
    dialogue = await talker.dialogue(None)
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        reading = asyncio.create_task(Line(dialogue.show).read())
        for letter in LINE:
            keys.send_text(letter)
        await until(engine.read_much.is_set)
        keys.send_text(BACKSPACE * RUBBED_OUT + "still.\r")
        line = await reading
    assert line == LINE[:-RUBBED_OUT] + "still."
    assert "user\n" + line in "".join([piece async for piece in dialogue.say(line)])
    await dialogue.aclose()
    await talker.stop()


async def test_only_servers_of_causeries_that_have_the_model_keep_the_conversation() -> None:
    async with running_server(scripted_service(Settings(), Noting())) as url:
        for model, kept in (("default", True), ("scripted", True), ("another", False)):
            talker = RemoteTalker(url, model, {})
            await talker.start()
            dialogue = await talker.dialogue(None)
            assert isinstance(dialogue, ServedDialogue) == kept
            await dialogue.aclose()
            await talker.stop()


async def test_any_other_server_is_sent_all_that_was_said() -> None:
    async with running_server(scripted_service(Settings(), Noting())) as url:
        talker = RemoteTalker(url, "default", {})
        await talker.start()
        dialogue = PlainDialogue(talker, "Be kind.")
        dialogue.show("on")
        first = "".join([piece async for piece in dialogue.say("one")])
        second = "".join([piece async for piece in dialogue.say("two")])
        assert second.startswith(first) and "Be kind." in first and "user\ntwo" in second
        await talker.stop()
