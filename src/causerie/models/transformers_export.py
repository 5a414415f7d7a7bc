"""Run as a program: let transformers read a GGUF file once and keep the model as safetensors.

``python -m causerie.models.transformers_export IN.gguf OUT`` writes ``OUT/model.safetensors`` and ``config.json``.
The weights are kept in float32, which holds the values of every quantised form exactly.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def export(source: Path, out: Path) -> None:
    import torch
    import transformers

    read: Any = transformers.AutoModelForCausalLM.from_pretrained
    options = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    model, loading = read(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    if loading["missing_keys"]:
        raise RuntimeError(f"the file has no weights for {', '.join(sorted(loading['missing_keys'])[:3])}")
    if any(weight.dtype != torch.float32 for weight in model.parameters()):
        raise RuntimeError("transformers did not decode the weights to float32")
    # The weights are plain now; what still says that they are GGUF's would forbid to save them.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)


if __name__ == "__main__":
    export(*(Path(argument) for argument in sys.argv[1:]))
