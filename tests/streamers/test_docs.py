"""The snippets of docs/streamers.md run as they stand, but for the model's name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.streamers.support import model, tokenizer

DOCS = Path(__file__).parents[2] / "docs" / "streamers.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented")
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) == 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=range(len(SNIPPETS)))
def test_the_snippet_prints_an_answer(snippet: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "microsoft/DialoGPT-small" in snippet
    code = snippet.replace("microsoft/DialoGPT-small", str(folder))
    names: dict[str, Any] = {}
    exec(compile(code, DOCS.name, "exec"), names)
    assert len(capsys.readouterr().out.strip()) > 10
