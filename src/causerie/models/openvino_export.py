"""Run as a program: let OpenVINO GenAI read a GGUF file once and keep the model that it builds.

``python -m causerie.models.openvino_export IN.gguf EXACT.npz OUT`` writes ``OUT/openvino_model.xml`` and ``.bin``.

The runtime stores float32 constants as float16, the rotary embedding's frequencies too: a relative error of 2⁻¹²
in a frequency is a tenth of a radian after a few hundred radians, so long contexts drift. It also leaves out
what scales those frequencies. EXACT.npz holds vectors by name: ``rope``, the frequencies to put in;
``rope.unscaled``, what the runtime computed for them; and the norms' weights, put back where they were rounded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

Vector: TypeAlias = np.ndarray[Any, Any]


def export(source: Path, exact: Path, out: Path) -> None:
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(source), scheduler, "CPU", {"enable_save_ov_model": True})
    del pipeline
    model = openvino.Core().read_model(source.with_name("openvino_model.xml"))
    with np.load(exact) as vectors:
        _put_exact(model, {name: vectors[name] for name in vectors.files})
    openvino.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)


def _put_exact(model: Any, vectors: dict[str, Vector]) -> None:
    """Put the exact vectors in the place of the stored ones. Raises RuntimeError if the frequencies are not found."""
    rope, unscaled = vectors.pop("rope"), vectors.pop("rope.unscaled")
    by_bytes = {vector.astype(np.float16).tobytes(): vector for vector in vectors.values()}
    rotary = 0
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant":
            continue
        kind, shape = node.get_element_type().get_type_name(), tuple(node.output(0).get_shape())
        if kind in ("f16", "f32") and shape == (1, len(rope), 1):
            if np.allclose(node.data.ravel(), unscaled, rtol=2e-3, atol=1e-7):
                rotary += 1
                _replace(node, rope)
        elif kind == "f16" and shape and (vector := by_bytes.get(node.data.tobytes())) is not None:
            _replace(node, vector)
    if rotary != 1:
        raise RuntimeError("the rotary embedding's frequencies are not where they were expected")


def _replace(node: Any, vector: Vector) -> None:
    """Give the users of a constant, or those of its widening to float32, the exact vector in its shape."""
    import openvino

    exact = openvino.op.Constant(vector.astype(np.float32).reshape(node.data.shape))
    rounded = node.get_element_type().get_type_name() == "f16"
    users = list(node.output(0).get_target_inputs())
    if rounded:
        users = [user for widening in users for user in widening.get_node().output(0).get_target_inputs()]
    for user in users:
        user.replace_source_output(exact.output(0))


if __name__ == "__main__":
    export(*(Path(argument) for argument in sys.argv[1:]))
