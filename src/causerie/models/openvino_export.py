"""Run as a program: let OpenVINO GenAI read a GGUF file once and keep the model that it builds.

``python -m causerie.models.openvino_export IN.gguf EXACT.npz OUT`` writes ``OUT/openvino_model.xml`` and ``.bin``.

The runtime stores every float32 constant as float16, the rotary embedding's frequencies too: a relative error
of 2⁻¹² in a frequency is a tenth of a radian after a few hundred radians, so long contexts drift. EXACT.npz
holds ``rope``, the frequencies, and the other vectors; where a stored constant is one of them rounded, the
exact one takes its place.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def export(source: Path, exact: Path, out: Path) -> None:
    import openvino
    import openvino_genai

    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = openvino_genai.ContinuousBatchingPipeline(str(source), scheduler, "CPU", {"enable_save_ov_model": True})
    del pipeline
    model = openvino.Core().read_model(source.with_name("openvino_model.xml"))
    with np.load(exact) as vectors:
        restored = _restore(model, {name: vectors[name] for name in vectors.files})
    if "rope" not in restored:
        raise RuntimeError("the rotary embedding's frequencies are not where they were expected")
    openvino.save_model(model, out / "openvino_model.xml", compress_to_fp16=False)


def _restore(model: Any, vectors: dict[str, np.ndarray[Any, Any]]) -> set[str]:
    """Put the exact vectors in the place of their rounded copies; returns which were found."""
    import openvino

    by_bytes = {vector.astype(np.float16).tobytes(): name for name, vector in vectors.items()}
    found = set()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f16:
            continue
        if not (node.output(0).get_shape() and (name := by_bytes.get(node.data.tobytes()))):
            continue
        exact = openvino.op.Constant(vectors[name].astype(np.float32).reshape(node.data.shape))
        for widening in [user.get_node() for user in node.output(0).get_target_inputs()]:
            for user in widening.output(0).get_target_inputs():
                user.replace_source_output(exact.output(0))
                found.add(name)
    return found


if __name__ == "__main__":
    export(*(Path(argument) for argument in sys.argv[1:]))
