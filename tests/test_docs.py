"""The documents say what is there, and stay short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_every_promise_names_tests_that_are_there() -> None:
    promised = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(promised) > 20
    assert promised - set(re.findall(r"def (test_\w+)\(", tests)) == set()


@pytest.mark.parametrize(("page", "lines"), [("README.md", 200), ("docs/architecture.md", 60)])
def test_a_page_stays_under_its_bound(page: str, lines: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) < lines


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
