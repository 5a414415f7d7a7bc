"""``make demo`` shows what it says, on the real model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.model
@pytest.mark.slow
def test_the_demo_reads_while_typing_is_interrupted_and_survives(default_folder: object) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/demo.py"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = " ".join(done.stdout.split())
    cold, typed = (int(found.replace(",", "")) for found in re.findall(r"first token comes after ([\d,]+) ms", text))
    assert typed < cold / 2
    read, settled = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) of ([\d,]+) tokens had", text)[0])
    assert read > settled / 2
    assert "“Stop. Just say hello.” It stops" in text
    assert "[interrupted]" in text
    before, after = re.findall(r"“([^”]+)” kill -9|to the last one: “([^”]+)”", text)
    assert before[0] == after[1]
    assert "The conversation goes on: “" in text
