"""What every folder of tests shares."""

from __future__ import annotations

import pytest

from causerie.models.folder import ModelFolder
from causerie.models.precision import PRECISIONS
from causerie.models.progress import StderrProgress
from causerie.models.resolve import resolve


@pytest.fixture(scope="session")
def default_folder() -> ModelFolder:
    """The default model as ``causerie serve`` loads it, in the user's own cache: fetched and converted once."""
    form = PRECISIONS["balanced"].form
    return resolve("default", form=form, engine="openvino", progress=StderrProgress())
