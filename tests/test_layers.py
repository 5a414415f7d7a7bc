"""The house rules of imports: only downwards, each room with the outside libraries that are its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "causerie"

FLOORS = {
    0: {"", "types", "errors", "config", "keys"},
    1: {"models", "text", "engines", "streamers"},
    2: {"chat"},
    3: {"wire"},
    4: {"web"},
    5: {"ray", "cli", "client", "__main__"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
SIDEWAYS = {("streamers", "text"), ("cli", "client"), ("__main__", "cli")}
"""The few imports allowed on one floor."""

RUNTIMES = {"openvino", "openvino_genai", "torch", "transformers", "accelerate", "ray", "vllm"}
NETWORK = {
    "socket",
    "ssl",
    "http",
    "urllib",
    "requests",
    "httpx",
    "httpx2",
    "websockets",
    "select",
    "selectors",
}
WEB = {"starlette", "fastapi", "uvicorn", "httptools", "h11", "anyio", "uvloop"}


@dataclass(frozen=True)
class Import:
    """``file`` imports ``name``; ``lazy`` inside a function, or for the type checker alone."""

    file: str
    line: int
    name: str
    lazy: bool

    @property
    def room(self) -> str:
        return self.file.split("/")[0].removesuffix(".py").replace("__init__", "")

    @property
    def top(self) -> str:
        return self.name.split(".")[0]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.name}"


def imports_of(source: str, file: str) -> Iterator[Import]:
    yield from _walk(ast.parse(source), file, lazy=False)


def _walk(node: ast.AST, file: str, *, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(file, child.lineno, alias.name, lazy)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"{file}:{child.lineno}: relative import"
            module = child.module or ""
            # `from causerie import errors` names a room in its alias.
            names = [f"causerie.{alias.name}" for alias in child.names] if module == "causerie" else [module]
            for name in names:
                yield Import(file, child.lineno, name, lazy)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            )
            yield from _walk(child, file, lazy=lazy or inside)


def all_imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(SOURCE.rglob("*.py")):
        found.extend(imports_of(path.read_text(encoding="utf-8"), path.relative_to(SOURCE).as_posix()))
    return found


IMPORTS = all_imports()


def room_of(name: str) -> str:
    """The room of a module: ``causerie.chat.log`` is in ``chat``, ``causerie.__version__`` in none."""
    room = name.removeprefix("causerie").lstrip(".").split(".")[0]
    return "" if room == "__version__" else room


def goes_down(found: Import) -> bool:
    ours, theirs = found.room, room_of(found.name)
    return ours == theirs or (ours, theirs) in SIDEWAYS or FLOOR_OF[theirs] < FLOOR_OF[ours] or FLOOR_OF[theirs] == 0


def allowed_runtime(found: Import) -> bool:
    stem = found.file.removesuffix(".py")
    if found.top in {"openvino", "openvino_genai"}:
        return stem.startswith("engines/openvino") or found.room == "models"
    if found.top in {"torch", "transformers", "accelerate"}:
        return stem.startswith("engines/transformers") or (found.room in {"streamers", "models"} and found.lazy)
    return found.room == found.top


def complaints(found: list[Import]) -> list[str]:
    return [str(each) for each in found]


def test_every_room_has_a_floor() -> None:
    assert {each.room for each in IMPORTS} <= set(FLOOR_OF)


def test_imports_go_down_only() -> None:
    ours = [each for each in IMPORTS if each.top == "causerie"]
    assert complaints([each for each in ours if not goes_down(each)]) == []


def test_the_rule_sees_an_import_that_goes_up() -> None:
    source = "def f():\n    import causerie.web.app\nfrom causerie import cli\nimport causerie.types\n"
    up = [each for each in imports_of(source, "chat/service.py") if not goes_down(each)]
    assert [(each.name, each.lazy) for each in up] == [("causerie.web.app", True), ("causerie.cli", False)]


def test_wire_does_no_io() -> None:
    banned = NETWORK | WEB | RUNTIMES | {"asyncio", "threading", "os", "pathlib", "time"}
    found = [each for each in IMPORTS if each.room == "wire" and each.top in banned]
    assert complaints([each for each in found if each.name != "urllib.parse"]) == []


def test_only_the_upper_floors_know_the_web() -> None:
    lower = [each for each in IMPORTS if FLOOR_OF[each.room] <= 2]
    assert complaints([each for each in lower if each.top in WEB]) == []


def test_only_models_use_the_network_below_the_web() -> None:
    lower = [each for each in IMPORTS if FLOOR_OF[each.room] <= 2 and each.room != "models"]
    assert complaints([each for each in lower if each.top in NETWORK]) == []


def test_only_its_store_knows_redis() -> None:
    found = [each for each in IMPORTS if each.top == "redis" and not each.file.startswith("chat/stores/redis")]
    assert complaints(found) == []


def test_the_client_knows_nothing_of_the_server_but_what_both_speak() -> None:
    rooms = {"client", "errors", "types", "wire"}
    ours = [each for each in IMPORTS if each.room == "client" and each.top == "causerie"]
    assert ours and complaints([each for each in ours if room_of(each.name) not in rooms]) == []


def test_each_runtime_is_known_to_its_own_engine_only() -> None:
    runtimes = [each for each in IMPORTS if each.top in RUNTIMES]
    assert complaints([each for each in runtimes if not allowed_runtime(each)]) == []


@pytest.mark.parametrize(
    ("file", "source", "allowed"),
    [
        ("engines/openvino.py", "import openvino_genai", True),
        ("chat/build.py", "def f():\n    import openvino", False),
        ("engines/openvino.py", "import torch", False),
        ("streamers.py", "import torch", False),
        ("streamers.py", "def f():\n    import torch", True),
        ("web/app.py", "import ray", False),
        ("ray/application.py", "from ray import serve", True),
    ],
)
def test_the_rule_knows_whose_a_runtime_is(file: str, source: str, allowed: bool) -> None:
    assert [allowed_runtime(each) for each in imports_of(source, file)] == [allowed]


def test_no_http_status_below_the_web() -> None:
    statuses = {400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 431, 499, 500, 502, 503, 504}
    found = [
        f"{path.relative_to(SOURCE)}:{node.lineno}: {node.value}"
        for room in sorted(set().union(*(FLOORS[floor] for floor in range(4))) - {"", "models"})
        for path in [*(SOURCE / room).rglob("*.py"), SOURCE / f"{room}.py"]
        if path.exists()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and type(node.value) is int and node.value in statuses
    ]
    assert found == []


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_import_is_quick() -> None:
    code = "import time; t = time.perf_counter(); import causerie; print(time.perf_counter() - t)"
    assert median(float(python(code)) for _ in range(5)) < 0.150


@pytest.mark.parametrize("module", ["causerie", "causerie.cli.commands"])
def test_import_loads_no_runtime(module: str) -> None:
    loaded = python(f"import {module}, sys; print(*sys.modules)").split()
    assert set(loaded) & (RUNTIMES | {"tokenizers", "uvicorn", "numpy", "prompt_toolkit", "redis", "sqlite3"}) == set()
