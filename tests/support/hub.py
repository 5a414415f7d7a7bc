"""A small Hugging Face hub on this machine, as much of it as huggingface_hub asks for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


class LocalHub:
    """Serves folders as repositories. ``requests`` holds every ``METHOD path`` that was asked for."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self._repos: dict[str, Path] = {}
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, repo: str, folder: Path) -> None:
        """Serve ``folder`` as ``repo`` (``org/name``)."""
        self._repos[repo] = folder

    def files(self, repo: str) -> dict[str, Path]:
        folder = self._repos[repo]
        return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}

    def has(self, repo: str) -> bool:
        return repo in self._repos

    def commit(self, repo: str) -> str:
        digest = hashlib.sha1()
        for name, path in self.files(repo).items():
            digest.update(name.encode() + path.read_bytes())
        return digest.hexdigest()

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables with which another process uses this hub, and ``cache`` as huggingface_hub's own."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_CACHE": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    @contextmanager
    def used(self, cache: Path) -> Iterator[None]:
        """Make this process use this hub. huggingface_hub reads its variables when it is imported, so its constants
        are set."""
        with pointed_at(self.endpoint, cache):
            yield

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def pointed_at(endpoint: str, cache: Path) -> Iterator[None]:
    """Make this process's huggingface_hub use ``endpoint`` and ``cache``."""
    from huggingface_hub import constants

    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    with (
        mock.patch.object(constants, "ENDPOINT", endpoint),
        mock.patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
        mock.patch.object(constants, "HF_HUB_CACHE", str(cache)),
        mock.patch.object(constants, "HF_HUB_DISABLE_XET", True),
        mock.patch.object(constants, "HF_HUB_OFFLINE", False),
    ):
        yield


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if match := _API.fullmatch(path):
            self._api(match[1], match[2])
        elif match := _FILE.fullmatch(path):
            self._file(match[1], match[3])
        else:
            self._refuse(404, "EntryNotFound")

    def _api(self, repo: str, verb: str | None) -> None:
        if not self.hub.has(repo):
            self._refuse(404, "RepoNotFound")
            return
        files = self.hub.files(repo)
        if verb == "tree":
            self._json(
                [{"type": "file", "path": n, "size": p.stat().st_size, "oid": _oid(p)} for n, p in files.items()]
            )
            return
        self._json(
            {"id": repo, "sha": self.hub.commit(repo), "private": False, "siblings": [{"rfilename": n} for n in files]}
        )

    def _file(self, repo: str, name: str) -> None:
        if not self.hub.has(repo):
            self._refuse(404, "RepoNotFound")
        elif repo in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif (path := self.hub.files(repo).get(name)) is None:
            self._refuse(404, "EntryNotFound")
        else:
            content = path.read_bytes()
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            self.send_response(206 if "Range" in self.headers else 200)
            self.send_header("ETag", f'"{_oid(path)}"')
            self.send_header("X-Repo-Commit", self.hub.commit(repo))
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[start:])

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _oid(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
