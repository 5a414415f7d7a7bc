"""How the making of a model folder is shown to the person who waits for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, Protocol, TextIO, TypeAlias

from tqdm import tqdm

Unit: TypeAlias = Literal["B", "tensors"]
Advance: TypeAlias = Callable[[int], object]


class Progress(Protocol):
    """Where the steps of a download or conversion are told."""

    @property
    def visible(self) -> bool:
        """Whether bars of other libraries may be drawn on standard error."""
        ...

    def task(self, label: str, total: int | None, unit: Unit) -> AbstractContextManager[Advance]:
        """One step with an amount; the context's value is called with every amount done."""
        ...

    def note(self, text: str) -> None:
        """One line about a step whose length is not known."""
        ...


class Silent:
    """For callers who want to hear nothing."""

    visible = False

    @contextmanager
    def task(self, label: str, total: int | None, unit: Unit) -> Iterator[Advance]:
        yield lambda amount: None

    def note(self, text: str) -> None:
        pass


class StderrProgress:
    """Bars on a terminal's standard error; where that is no terminal, one plain line for each step."""

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stderr if file is None else file
        self.visible = self._file is sys.stderr and self._file.isatty()

    @contextmanager
    def task(self, label: str, total: int | None, unit: Unit) -> Iterator[Advance]:
        if not self._file.isatty():
            self.note(label)
            yield lambda amount: None
            return
        with tqdm(
            desc=label,
            total=total,
            unit=unit,
            unit_scale=unit == "B",
            unit_divisor=1000,
            file=self._file,
            dynamic_ncols=True,
        ) as bar:
            yield bar.update

    def note(self, text: str) -> None:
        print(text, file=self._file, flush=True)
