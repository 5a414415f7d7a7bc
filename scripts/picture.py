"""Make the README's picture from a real run of the demo: draw what the terminal showed and when.

python scripts/picture.py > docs/picture.svg

Each piece of text appears in the picture at the time at which it came.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = 92
LINE = 19
CHARACTER = 8.4
MARGIN = 16


@dataclass(frozen=True)
class Piece:
    """Text that came at ``seconds`` of the run."""

    seconds: float
    text: str
    style: str


def spell(command: str, at: float) -> list[Piece]:
    return [Piece(at, "$ ", "prompt"), Piece(at, command + "\n", "command")]


def read_all(process: subprocess.Popen[bytes], start: float) -> list[Piece]:
    """What ``process`` prints until it ends."""
    assert process.stdout is not None
    pieces: list[Piece] = []
    while data := os.read(process.stdout.fileno(), 4096):
        pieces.append(Piece(time.monotonic() - start, data.decode(errors="replace"), "text"))
    return pieces


def run() -> list[Piece]:
    start = time.monotonic()
    pieces = spell("make demo", 0.0)
    command = [sys.executable, "-u", "scripts/demo.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as demo:
        pieces += read_all(demo, start)
    return pieces


def draw(pieces: list[Piece]) -> str:
    row, column = 0, 0
    spans: list[str] = []
    for piece in pieces:
        for word in re.findall(r"\n|[^\S\n]+|\S+", re.sub(r"\x1b\[[0-9;]*m|\r", "", piece.text)):
            if word == "\n" or column + len(word) > COLUMNS:
                row, column = row + 1, 0
                if word.isspace():
                    continue
            x, y = MARGIN + column * CHARACTER, 2 * MARGIN + row * LINE
            spans.append(
                f'<text x="{x:.1f}" y="{y}" class="{piece.style}" style="animation-delay:{piece.seconds:.2f}s">'
                f"{html.escape(word)}</text>"
            )
            column += len(word)
    width, height = int(COLUMNS * CHARACTER + 2 * MARGIN), 3 * MARGIN + row * LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">'
        "<title>A real run of causerie in a terminal</title><style>"
        "text{font:14px ui-monospace,Menlo,Consolas,monospace;white-space:pre;fill:#d7dae0;opacity:0;"
        "animation:come 0s forwards}.prompt{fill:#7bc275}.command{fill:#fff;font-weight:600}"
        "@keyframes come{to{opacity:1}}@media (prefers-reduced-motion){text{opacity:1;animation:none}}</style>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1d2026"/>' + "".join(spans) + "</svg>\n"
    )


if __name__ == "__main__":
    sys.stdout.write(draw(run()))
