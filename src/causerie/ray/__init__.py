"""The product on Ray Serve: ``serve run causerie.ray:build model=…``. Needs the extra ``causerie[ray]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from causerie.ray.application import build

if TYPE_CHECKING:
    from ray import serve

    app: serve.Application

__all__ = ["app", "build"]


def __getattr__(name: str) -> Any:
    """``app`` is ``build`` without arguments, for ``serve build``, which takes no builder; made when asked for."""
    if name == "app":
        return build({})
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
