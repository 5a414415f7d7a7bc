"""A tokenizer whose ids are bytes, and a small model that knows them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from causerie.text.detokenizer import BYTE_CHARACTERS
from tests.engines import tiny

END = 256


def tokenizer() -> Any:
    """Bytes under their own values; ``<|endoftext|>`` is 256 and the padding, 257 is one more control token."""
    inner = Tokenizer(BPE(dict(BYTE_CHARACTERS), []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<|endoftext|>", "<|other|>"])
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=inner,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|other|>"],
        padding_side="left",
    )


class Parrot(torch.nn.Module):
    """A logits processor: makes a model say what it is told, row by row."""

    def __init__(self, texts: list[bytes], prompt_length: int) -> None:
        super().__init__()
        self.texts = [[*text, END] for text in texts]
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        place = input_ids.shape[1] - self.prompt_length
        forced = torch.full_like(scores, -torch.inf)
        for row, text in enumerate(self.texts):
            forced[row, text[place] if place < len(text) else END] = 0.0
        return forced


def model() -> Any:
    made = tiny.llama()
    made.generation_config.eos_token_id = END
    made.generation_config.pad_token_id = END
    return made
