"""What the ``precision`` setting means for OpenVINO: the form of the weights, and the runtime's options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

WeightForm: TypeAlias = Literal["f16", "q8_0"]
"""Forms that weights are re-encoded in where the runtime is not faithful to a file's own."""


@dataclass(frozen=True, slots=True)
class Precision:
    """``properties`` are OpenVINO's own names and values."""

    form: WeightForm
    properties: dict[str, str] = field(default_factory=dict)


PRECISIONS: dict[str, Precision] = {
    "exact": Precision("f16", {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}),
    "balanced": Precision("f16", {"KV_CACHE_PRECISION": "f16"}),
    "small": Precision("q8_0", {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16"}),
}
