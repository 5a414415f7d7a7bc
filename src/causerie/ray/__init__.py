"""The product on Ray Serve: ``serve run causerie.ray:build model=…``. Needs the extra ``causerie[ray]``."""

from causerie.ray.app import build

__all__ = ["build"]
