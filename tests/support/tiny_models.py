"""Models of a few thousand weights, in every form that a reference can name. Made in well under a second each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
VOCABULARY = 352
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEXT = (
    "the quick brown fox jumps over the lazy dog and the dog sleeps",
    "def add(left, right):\n    return left + right\n",
    "causerie is an easy talk between people, and talk is what it serves",
)


def tiny_tokenizer(vocabulary: int = VOCABULARY) -> Tokenizer:
    """A byte-level BPE whose first ids are ``SPECIAL``; always the same."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer


def write_tiny_gpt2(folder: Path, *, tokenizer_json: bool = True, context: int = 256) -> Any:
    """A GPT-2 safetensors folder laid out as DialoGPT's is; returns the transformers model.

    Without ``tokenizer_json`` the tokenizer is only in ``vocab.json`` and ``merges.txt``.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=context,
        n_embd=32,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = GPT2LMHeadModel(config)
    model.eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.model.save(str(folder))
    if tokenizer_json:
        tokenizer.save(str(folder / "tokenizer.json"))
    return model


def tiny_decoder(kind: str = "llama", **changes: Any) -> Any:
    """A float32 transformers model of ``kind`` (llama, qwen2, qwen3) with two layers and four heads of 16.

    Its matrices hold values that float16 has exactly, its vectors do not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    torch.manual_seed(1)
    build: Any = AutoModelForCausalLM.from_config
    model = build(AutoConfig.for_model(kind, **(settings | changes))).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight.data, mean=0.0 if name.endswith("bias") else 1.0, std=0.2)
        else:
            weight.data = weight.data.half().float()
    return model


def write_tiny_llama(folder: Path) -> Any:
    """A Llama safetensors folder with a chat template; returns the transformers model."""
    model = tiny_decoder()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    return model


_LAYER = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
} | {f"self_attn.{x}_proj.{part}": f"attn_{x}.{part}" for x in "qkv" for part in ("weight", "bias")}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_tiny_gguf(
    path: Path,
    *,
    model: Any = None,
    quant: GGMLQuantizationType = GGMLQuantizationType.F32,
    tensors: dict[str, Any] | None = None,
    leave_out: tuple[str, ...] = (),
    **metadata: Any,
) -> Any:
    """``model`` (a ``tiny_decoder``; a llama if none) as a GGUF file, its matrices in ``quant``; returns the model.

    ``tensors`` are added as they are, those already in another type as a pair with it; those of the model that
    ``leave_out`` names are not. ``metadata`` replaces or adds keys, written with ``__`` for a dot; None leaves one out.
    """
    model = tiny_decoder() if model is None else model
    config = model.config
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, config.model_type)
    for key, value in (_metadata(config) | {k.replace("__", "."): v for k, v in metadata.items()}).items():
        if value is not None:
            _add(writer, key, value)
    for name, weight in model.state_dict().items():
        if name not in leave_out:
            writer.add_tensor(*_tensor(config, name, weight.numpy().astype(np.float32), quant))
    for name, values in (tensors or {}).items():
        data, kind = values if isinstance(values, tuple) else (values, None)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _metadata(config: Any) -> dict[str, Any]:
    tokenizer, arch = tiny_tokenizer(config.vocab_size), config.model_type
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.key_length": config.head_dim if arch == "qwen3" else None,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.vocab_size": config.vocab_size,
        "general.file_type": 0,
        "general.quantization_version": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token, _ in vocabulary],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHATML,
    }


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def _tensor(config: Any, name: str, values: np.ndarray[Any, Any], quant: GGMLQuantizationType) -> Any:
    """A weight under GGUF's name, in GGUF's order of rows and in ``quant``: the arguments of ``add_tensor``."""
    if name in _TOP:
        renamed = _TOP[name]
    else:
        _, _, layer, rest = name.split(".", 3)
        renamed = f"blk.{layer}.{_LAYER[rest]}"
    if config.model_type == "llama" and renamed.endswith(("attn_q.weight", "attn_k.weight")):
        heads = config.num_attention_heads if "attn_q" in renamed else config.num_key_value_heads
        pairs = values.reshape(heads, 2, values.shape[0] // heads // 2, values.shape[1])
        values = pairs.swapaxes(1, 2).reshape(values.shape)
    if values.ndim < 2 or quant == GGMLQuantizationType.F32:
        return renamed, np.ascontiguousarray(values)
    return renamed, gguf.quantize(values, quant), None, quant
