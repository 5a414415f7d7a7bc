"""API keys over real sockets: who comes in, as whom, and what those are told who do not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.routing import Router
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect as connect_socket
from websockets.exceptions import InvalidStatus

from causerie.chat.service import ChatService
from causerie.config import Settings
from causerie.errors import ConfigError
from causerie.keys import ANONYMOUS, hash_of
from causerie.web.access import KEY_PROTOCOL, Access
from causerie.web.chatbot import PROTOCOL
from causerie.web.framed_chat import FRAMED
from causerie.web.response_socket import SUBPROTOCOL
from causerie.wire.chat_socket import SENTINEL
from tests.support.http import connect, request_bytes, send
from tests.support.server import running_server
from tests.support.service import says, service_with

ALICE, BOB = "ck-of-alice-0123456", "ck-of-bob-0123456789"
HEADER = {"Authorization": f"Bearer {ALICE}"}
ROUTES = [
    ("GET", "/"),
    ("POST", "/?prompt=Hi"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/scripted"),
    ("GET", "/metrics"),
    ("GET", "/no/such/path"),
    ("DELETE", "/health/"),
    ("GET", "//health"),
]
BODIES: dict[str, bytes | dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
}


def with_keys(**settings: Any) -> ChatService:
    keys = f"alice={ALICE},bob={BOB}"
    return service_with(says("ok"), settings=Settings(engine="scripted", **({"api_keys": keys} | settings)))


def socket_to(url: str, headers: dict[str, str] | None = None, *protocols: str) -> connect_socket:
    offered: Any = list(protocols) or None
    return connect_socket(url.replace("http", "ws") + "/", additional_headers=headers, subprotocols=offered)


async def status_of(url: str, method: str, path: str, headers: dict[str, str]) -> int:
    return await (await send(url, method, path, BODIES.get(path, b""), headers)).head()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_every_route_needs_a_key(method: str, path: str) -> None:
    service = with_keys()
    async with running_server(service) as url:
        for headers in ({}, {"Authorization": "Bearer wrong-key-0123456789"}):
            response = await send(url, method, path, BODIES.get(path, b""), headers)
            assert await response.head() == 401
            assert response.headers["www-authenticate"] == "Bearer"
            error = (await response.json())["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
            assert "wrong-key" not in str(error)
        expected = {"/no/such/path": 404, "//health": 404, "/health/": 404}.get(path, 200)
        assert await status_of(url, method, path, HEADER) == expected
    assert b'admission_rejections_total{reason="invalid_api_key"} 2.0' in service.metrics.render()


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_need_none(path: str) -> None:
    async with running_server(with_keys()) as url:
        assert await status_of(url, "GET", path, {}) == 200


@pytest.mark.parametrize("value", [ALICE, f"Basic {ALICE}", f"Bearer{ALICE}", "Bearer ", f"Bearer {ALICE} {BOB}"])
async def test_what_is_no_bearer_is_refused(value: str) -> None:
    async with running_server(with_keys()) as url:
        assert await status_of(url, "GET", "/v1/models", {"Authorization": value}) == 401


async def test_two_keys_at_once_are_refused_and_the_scheme_has_no_case() -> None:
    async with running_server(with_keys()) as url:
        both = {"Authorization": f"Bearer {ALICE}", "authorization": f"Bearer {BOB}"}
        assert await status_of(url, "GET", "/v1/models", both) == 401
        assert await status_of(url, "GET", "/v1/models", {"Authorization": f"bearer  {ALICE}"}) == 200


async def test_a_stranger_is_refused_before_the_body_came_and_then_hung_up_on() -> None:
    async with running_server(with_keys(max_body_bytes=2048)) as url:
        response = await connect(url)
        response.writer.write(request_bytes(url, "POST", "/v1/completions", headers={"Content-Length": "999"}))
        assert await response.head() == 401
        assert response.headers["connection"] == "close"


async def test_a_socket_is_refused_before_it_is_accepted() -> None:
    wrong = KEY_PROTOCOL + "wrong-key-0123456789"
    attempts: list[tuple[dict[str, str], list[str]]] = [
        ({}, []),
        ({"Authorization": "Bearer wrong-key-0123456789"}, []),
        ({}, [wrong, PROTOCOL]),
        ({}, [KEY_PROTOCOL + ALICE, KEY_PROTOCOL + BOB]),
    ]
    async with running_server(with_keys()) as url:
        for headers, protocols in attempts:
            with pytest.raises(InvalidStatus) as caught:
                await socket_to(url, headers, *protocols)
            answer = caught.value.response
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert b"invalid_api_key" in (answer.body or b"")


@pytest.mark.parametrize(
    ("headers", "protocols", "taken"),
    [(HEADER, [], None), ({}, [PROTOCOL, KEY_PROTOCOL + ALICE], PROTOCOL), ({}, [KEY_PROTOCOL + ALICE], None)],
)
async def test_a_socket_takes_the_key_as_header_or_protocol_and_never_says_it_back(
    headers: dict[str, str], protocols: list[str], taken: str | None
) -> None:
    async with running_server(with_keys()) as url, socket_to(url, headers, *protocols) as socket:
        assert socket.subprotocol == taken
        assert socket.response is not None and ALICE not in str(socket.response.headers)
        await socket.send("Hi")
        said = ""
        while (frame := await socket.recv()) != SENTINEL:
            said += str(frame)
        assert said == "ok"


@asynccontextmanager
async def telling_owners(service: ChatService, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[str, list[str]]]:
    """The server, and the owner of each request that came as far as the router."""
    owners: list[str] = []

    class Watched:
        def __init__(self, routes: Any, **options: Any) -> None:
            self._router = Router(routes, **options)

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            owners.append(scope["state"]["owner"])
            await self._router(scope, receive, send)

    monkeypatch.setattr("causerie.web.app.Router", Watched)
    async with running_server(service) as url:
        yield url, owners


async def test_each_key_is_an_owner_and_no_keys_are_the_anonymous_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with telling_owners(with_keys(), monkeypatch) as (url, owners):
        for key in (ALICE, BOB):
            await status_of(url, "GET", "/v1/models", {"Authorization": f"Bearer {key}"})
        async with socket_to(url, {}, KEY_PROTOCOL + BOB):
            pass
        await status_of(url, "GET", "/ready", HEADER)
        assert owners == ["alice", "bob", "bob", ANONYMOUS]
    async with telling_owners(service_with(says("ok")), monkeypatch) as (url, owners):
        await status_of(url, "GET", "/v1/models", {"Authorization": "Bearer none"})
        async with socket_to(url, {}, KEY_PROTOCOL + "none"):
            pass
        assert owners == [ANONYMOUS, ANONYMOUS]


async def test_with_keys_any_host_will_do() -> None:
    async with running_server(with_keys()) as url:
        assert await status_of(url, "GET", "/v1/models", HEADER | {"Host": "chat.example.org"}) == 200
    async with running_server(with_keys(allowed_hosts=["other.example"])) as url:
        assert await status_of(url, "GET", "/v1/models", HEADER | {"Host": "chat.example.org"}) == 400


async def test_the_page_says_which_key() -> None:
    for service, said in ((with_keys(), b"with your API key"), (service_with(says("ok")), b"any key will do")):
        async with running_server(service) as url:
            response = await send(url, "GET", "/", headers=HEADER)
            assert await response.head() == 200
            assert said in await response.body()


def keys_file(folder: Path, **keys: str) -> Path:
    file = folder / "keys.txt"
    file.write_text("".join(f"{name}: {hash_of(key.encode())}\n" for name, key in keys.items()))
    file.chmod(0o600)
    return file


def owner(access: Access, key: str) -> str:
    headers = [(b"authorization", b"Bearer " + key.encode())]
    return access.owner_of({"type": "http", "path": "/", "headers": headers})


def test_keys_are_read_again_and_a_bad_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    access = Access(Settings(api_keys_file=keys_file(tmp_path, alice=ALICE)))
    keys_file(tmp_path, bob=BOB)
    assert owner(access, ALICE) == "alice"
    access.reload()
    assert owner(access, BOB) == "bob"
    with pytest.raises(Exception, match="not known here"):
        owner(access, ALICE)
    (tmp_path / "keys.txt").write_text(f"alice: {ALICE}\n")
    access.reload()
    assert owner(access, BOB) == "bob"
    keys_file(tmp_path)
    access.reload()
    with pytest.raises(Exception, match="not known here"):
        owner(access, BOB)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].endswith(": bob") and "stay as they were" in said[1] and "nobody may come in" in said[2]
    assert not any(key in line for key in (ALICE, BOB) for line in said)


def test_no_key_in_the_file_is_refused_and_so_is_asking_and_not_asking_for_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="causerie keys add NAME"):
        Access(Settings(api_keys_file=keys_file(tmp_path)))
    with pytest.raises(ConfigError, match="Choose one"):
        Access(Settings(api_keys_file=keys_file(tmp_path, alice=ALICE), allow_anonymous=True))


async def test_under_another_root_the_same_routes_are_open() -> None:
    access = Access(with_keys().settings)
    scope = {"type": "http", "root_path": "/chat", "headers": []}
    assert access.owner_of({**scope, "path": "/chat/health"}) == ANONYMOUS
    with pytest.raises(Exception, match="needed here"):
        access.owner_of({**scope, "path": "/chat/metrics"})


@pytest.mark.parametrize(("origin", "status"), [("https://evil.example", 403), ("null", 403), (None, 200), ("", 200)])
async def test_a_foreign_page_cannot_have_anything_done_where_no_keys_are(origin: str | None, status: int) -> None:
    async with running_server(service_with(says("Hi"))) as url:
        own = origin if origin else url
        headers = {} if origin is None else {"Origin": own}
        answer = await send(url, "POST", "/", b"Hello", {"Content-Type": "text/plain", **headers})
        assert await answer.head() == status
        page = await send(url, "GET", "/", headers=headers)
        assert await page.head() == 200


async def ask_frame(socket: Any, **fields: Any) -> dict[str, Any]:
    """Send a frame; the next that comes."""
    await socket.send(orjson.dumps(fields).decode())
    found: dict[str, Any] = orjson.loads(await socket.recv())
    return found


async def test_what_one_key_made_is_not_there_for_another_on_any_socket() -> None:
    async with asyncio.timeout(20), running_server(with_keys()) as url:
        bobs = {"Authorization": f"Bearer {BOB}"}
        responses = url.replace("http", "ws") + "/v1/responses"
        async with (
            socket_to(url, HEADER, FRAMED) as chat,
            connect_socket(responses, subprotocols=[SUBPROTOCOL, KEY_PROTOCOL + ALICE]) as alice,  # type: ignore[list-item]
            connect_socket(responses, additional_headers=bobs) as bob,
        ):
            assert alice.subprotocol == SUBPROTOCOL
            conversation = orjson.loads(await chat.recv())["session"]["conversation"]["id"]
            made = await ask_frame(alice, type="response.create", input="Hi")
            id_ = made["response"]["id"]
            while b'"response.completed"' not in (await alice.recv(decode=False)):
                pass
            for field, value in (("previous_response_id", id_), ("conversation", conversation)):
                refused = await ask_frame(bob, type="response.create", input="Hi", **{field: value})
                assert refused["type"] == "error" and refused["error"]["code"].endswith("_not_found")
            steered = await ask_frame(bob, type="response.steer", previous_response_id=id_, input="Hi")
            assert steered["error"]["code"] == "response_not_found"
            cancelled = await ask_frame(bob, type="response.cancel", response_id=id_)
            assert cancelled["error"]["code"] == "response_not_found"
            for protocols in ([], [FRAMED]):
                address = f"{url.replace('http', 'ws')}/?conversation={conversation}"
                with pytest.raises(InvalidStatus) as caught:
                    await connect_socket(address, additional_headers=bobs, subprotocols=protocols or None)  # type: ignore[arg-type]
                assert caught.value.response.status_code == 404
        with pytest.raises(InvalidStatus) as caught:
            await connect_socket(responses)
        assert caught.value.response.status_code == 401
