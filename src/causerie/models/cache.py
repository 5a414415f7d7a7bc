"""Folders in the user's cache that are made once, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from causerie.errors import ModelUnavailable
from causerie.models.progress import Progress

_CANNOT_WRITE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def cache_root(environ: Mapping[str, str] = os.environ) -> Path:
    """Where models are kept: ``$CAUSERIE_CACHE/models``, or ``causerie/models`` in the user's cache directory."""
    if chosen := environ.get("CAUSERIE_CACHE"):
        return Path(chosen).expanduser().absolute() / "models"
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    base = xdg if xdg.is_absolute() else Path.home() / ".cache"
    return base / "causerie" / "models"


def folder_name(*parts: str) -> str:
    """A directory's name that says what is in it."""
    return "--".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip(".-") for part in parts)


def make_once(target: Path, make: Callable[[Path], None], progress: Progress) -> Path:
    """Return ``target``, after ``make`` has filled it if it was not there.

    ``make`` is given an empty directory beside it, which takes the name only when all is written: whoever sees
    ``target`` sees all of it. One process makes it while others wait. What a killed process left is removed by
    the next that makes the same folder. Raises ModelUnavailable for an OSError, whether the cache's or ``make``'s.
    """
    if target.is_dir():
        return target
    try:
        locks = target.parent / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{target.name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            progress.note(f"Another process is preparing {target.name}; waiting for it…")
            lock.acquire()
        try:
            if not target.is_dir():
                _make(target, make)
        finally:
            lock.release()
    except OSError as error:
        raise ModelUnavailable(
            f"The model cache {target.parent} cannot be written: {error.strerror or error}. Free some space, or "
            "set CAUSERIE_CACHE to another folder."
        ) from error
    return target


def _make(target: Path, make: Callable[[Path], None]) -> None:
    for stale in target.parent.glob(f".{target.name}.*.partial"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}.partial"
    partial.mkdir()
    try:
        _fill(partial, make)
        for file in partial.rglob("*"):
            if file.is_file():
                _flush(file)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _fill(folder: Path, make: Callable[[Path], None]) -> None:
    """Let through, of ``make``'s own OSErrors, only those that say that ``folder`` cannot be written."""
    try:
        make(folder)
    except OSError as error:
        # numpy has no errno for a write that was cut short.
        cut_short = type(error) is OSError and error.errno is None
        if cut_short or error.errno in _CANNOT_WRITE:
            raise
        raise ModelUnavailable(
            f"The model could not be prepared ({error.strerror or type(error).__name__}). Try again."
        ) from error


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
