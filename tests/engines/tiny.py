"""Models of a few thousand weights, made on the spot, in the folders that transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 320

# Weights this small gain nothing from a second thread, and wait long for it on a busy machine.
torch.set_num_threads(1)


def gpt2(**changes: Any) -> Any:
    """DialoGPT's architecture; weights wide enough that greedy answers do not stand still."""
    torch.manual_seed(3)
    sizes = {"n_positions": 1024, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **{**sizes, **changes})
    model: Any = GPT2LMHeadModel(config)
    return model.eval()


def llama(**changes: Any) -> Any:
    torch.manual_seed(5)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.5,
    }
    config = LlamaConfig(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, pad_token_id=0, **{**sizes, **changes})
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder
