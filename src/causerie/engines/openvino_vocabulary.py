"""A model's vocabulary as OpenVINO GenAI wants it, for holding answers to a grammar.

The runtime takes a vocabulary only out of a detokenizer of its own: from the constants of the node that is named
``VocabDecoder``. So a detokenizer is made that has little more than that node. Token ids still go in and out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
import openvino_tokenizers
from openvino import opset15
from openvino.utils.node_factory import NodeFactory


def tokenizer(vocabulary: Sequence[bytes]) -> Any:
    """One for a pipeline. A token that spells nothing, as control tokens do here, is never chosen under a grammar."""
    model = _detokenizer(vocabulary)
    model.set_rt_info(openvino_tokenizers.__version__, "openvino_tokenizers_version")
    with tempfile.TemporaryDirectory(prefix="causerie-") as folder:
        openvino.save_model(model, Path(folder) / "openvino_detokenizer.xml", compress_to_fp16=False)
        # Each request names the ids that end it; without these here, they would be looked for by encoding text.
        ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
        (Path(folder) / "config.json").write_text(json.dumps(ids), encoding="utf-8")
        return openvino_genai.Tokenizer(folder)


@cache
def _nodes() -> NodeFactory:
    """Never let go of: the nodes' own code is in a library that would be unloaded with it."""
    nodes = NodeFactory()
    nodes.add_extension(Path(openvino_tokenizers._ext_path))
    return nodes


def _detokenizer(vocabulary: Sequence[bytes]) -> Any:
    lengths = np.array([len(token) for token in vocabulary], dtype=np.int32)
    ends = np.cumsum(lengths, dtype=np.int32)
    spelled = np.frombuffer(b"".join(vocabulary), dtype=np.uint8)
    constants = [openvino.op.Constant(values).output(0) for values in (ends - lengths, ends, spelled)]
    nodes = _nodes()
    ids = openvino.op.Parameter(openvino.Type.i64, openvino.PartialShape(["?", "?"]))
    narrow = opset15.convert(ids, "i32").output(0)
    *ragged, characters = nodes.create("VocabDecoder", [narrow, *constants]).outputs()
    fused = nodes.create("FuzeRagged", ragged).outputs()
    text = opset15.string_tensor_pack(*fused, characters).output(0)
    text.tensor.add_names({"string_output"})
    return openvino.Model([text], [ids], "detokenizer")
