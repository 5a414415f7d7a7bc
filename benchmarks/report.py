"""Tables for people, one JSON line for machines, and which machine it was."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

Cell: TypeAlias = str | float | int | None


def table(headers: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """A Markdown table with its columns aligned, so that it reads well in a terminal too."""
    lines = [list(headers), *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headers))]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in ruled
    )


def _text(cell: Cell) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.3g}"
    return str(cell)


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code: processor, its matrix instructions, cores, versions."""
    flags, model = _cpuinfo()
    matrix = [
        flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx2") if flag in flags
    ]
    return {
        "date": date.today().isoformat(),
        "cpu": model,
        "cores": os.cpu_count(),
        "matrix_instructions": matrix,
        "python": platform.python_version(),
        "versions": {
            name: _version(name) for name in ("openvino", "openvino-genai", "transformers", "torch", "uvicorn")
        },
        "others_share": round(others_share(), 3),
    }


def _cpuinfo() -> tuple[set[str], str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set(), platform.processor()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return set(fields.get("flags", "").split()), fields.get("model name", platform.processor())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def machine_line() -> str:
    """The same in one line, for under a heading."""
    about = machine()
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    return (
        f"{about['date']}; {about['cpu']}, {about['cores']} cores ({', '.join(about['matrix_instructions'])}); "
        f"Python {about['python']}, {versions}. Other processes took {100 * about['others_share']:.0f} % of the "
        "processors meanwhile."
    )


def others_share() -> float:
    """Of all processors' time since this program began: what neither it nor a child that has ended took (Linux).

    Above a few percent, the absolute figures are those of a busy machine.
    """
    busy, total = (now - then for now, then in zip(_processors(), _BEGUN, strict=True))
    own = sum(
        used.ru_utime + used.ru_stime
        for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    return max(0.0, busy - own) / total if total else 0.0


def _processors() -> tuple[float, float]:
    """Seconds that all processors together were busy (or taken by the host), and all of their seconds."""
    try:
        times = [int(time) for time in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0.0, 0.0
    hertz = os.sysconf("SC_CLK_TCK")
    idle = times[3] + times[4]
    return (sum(times) - idle) / hertz, sum(times) / hertz


_BEGUN = _processors()


def spread(values: Sequence[float]) -> str:
    """Median and range: ``0.95 (0.92 to 0.97)``."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def percentile(values: Iterable[float], share: float) -> float:
    """The value below which ``share`` of them lie (nearest rank)."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def finish(name: str, result: dict[str, Any]) -> None:
    """Print the machine-readable last line."""
    print(json.dumps({"benchmark": name, "machine": machine(), **result}), flush=True)
