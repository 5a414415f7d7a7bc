"""The table of scenarios on ``causerie serve``; ``tests/on_ray`` runs the same on Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.process import serve_process
from tests.support.scenarios import SCENARIOS, Scenario

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def url(default_folder: object) -> Iterator[str]:
    with serve_process(engine="auto") as server:
        yield server.url


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_scenario(url: str, scenario: Scenario) -> None:
    scenario(url)
