"""Run the benchmarks and put their tables into the documents, each between its own marks.

``python -m benchmarks`` runs all that need nothing but this machine; ``python -m benchmarks serve start`` those.
Every benchmark runs in a process of its own, one after another; have the machine do nothing else meanwhile.
``compare`` needs a server to compare with, so it is run by hand: ``python -m benchmarks.compare --help``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
SECTIONS: dict[str, tuple[str, ...]] = {
    "serve": (),
    "start": ("--install",),
    "prefill": (),
    "ahead": (),
    "tutorial": (),
    "precision": (),
    "storing": (),
    "sockets": (),
    "cuts": (),
}
"""Each benchmark's name and the arguments that the documents' figures are made with."""
_PAGES = {"precision": "precision.md"}


def run(name: str) -> str:
    """What a benchmark printed; its JSON line is printed here and left out. Raises CalledProcessError."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *SECTIONS[name]]
    print(f"$ python -m benchmarks.{name} {' '.join(SECTIONS[name])}".rstrip(), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    done.check_returncode()
    return done.stdout.rstrip().rpartition("\n")[0]


def insert(name: str, tables: str) -> None:
    """Replace what stands between a document's marks for ``name``."""
    page = DOCS / _PAGES.get(name, "benchmarks.md")
    begin, end = f"<!-- made by benchmarks.{name} -->", f"<!-- end of benchmarks.{name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    if not rest:
        raise SystemExit(f"{page.name} has no place for {name}: {begin}")
    after = rest.partition(end)[2]
    page.write_text(f"{before}{begin}\n\n{tables.strip()}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(SECTIONS)}; none: all of them")
    names = parser.parse_args().names or list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in names:
        insert(name, run(name))


if __name__ == "__main__":
    main()
