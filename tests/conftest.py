"""What every folder of tests shares."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from causerie.models.folder import ModelFolder
from causerie.models.precision import PRECISIONS
from causerie.models.progress import StderrProgress
from causerie.models.resolve import resolve


@pytest.fixture(scope="session", autouse=True)
def data_home() -> Iterator[None]:
    """No test keeps its responses among the user's."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("XDG_DATA_HOME")
        os.environ["XDG_DATA_HOME"] = folder
        yield
        if before is None:
            del os.environ["XDG_DATA_HOME"]
        else:
            os.environ["XDG_DATA_HOME"] = before


@pytest.fixture(scope="session")
def default_folder() -> ModelFolder:
    """The default model as ``causerie serve`` loads it, in the user's own cache: fetched and converted once."""
    form = PRECISIONS["balanced"].form
    return resolve("default", form=form, engine="openvino", progress=StderrProgress())
