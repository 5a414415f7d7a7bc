"""The truth that faithfulness is measured against: float32 transformers on the file's own (dequantised) weights.

It reads the GGUF with transformers' own reader, not with ours, so that a mistake of our conversion shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM


class Reference:
    """Takes about 15 s to load and 0.6 GB for 135M weights."""

    def __init__(self, gguf: Path) -> None:
        # One thread costs a fifth on an idle machine; two wait for each other without end on a busy one.
        torch.set_num_threads(1)
        self._model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
        self._model.train(False)

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The next ``count`` most likely tokens, end-of-text or not."""
        with torch.inference_mode():
            ids = torch.tensor([list(prompt)])
            cache = None
            chosen: list[int] = []
            for _ in range(count):
                out = self._model(ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                ids = out.logits[:, -1:].argmax(-1)
                chosen.append(int(ids))
        return chosen

    def log_probabilities(self, prompt: Sequence[int], text: Sequence[int]) -> npt.NDArray[np.float32]:
        """Row i: natural-log probabilities of every token after ``prompt + text[:i]``."""
        with torch.inference_mode():
            logits = self._model(torch.tensor([[*prompt, *text[:-1]]])).logits[0, len(prompt) - 1 :]
            result: npt.NDArray[np.float32] = torch.log_softmax(logits, -1).numpy()
        return result
