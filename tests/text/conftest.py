"""Property tests here are bounded by their number of examples, not by a machine's pace."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("text", deadline=None)
settings.load_profile("text")
