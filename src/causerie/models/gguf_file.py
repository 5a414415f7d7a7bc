"""Reading GGUF: one file with a model's metadata, tokenizer and weights."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causerie.errors import ModelUnavailable


@dataclass(frozen=True, slots=True)
class PositionScaling:
    """``kind`` is GGUF's name: ``linear`` (positions are divided by ``factor``), ``yarn``, ``longrope``, …"""

    kind: str
    factor: float


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """A transformer's sizes, as far as its KV cache and its rotary embedding need them."""

    layers: int
    heads: int
    kv_heads: int
    head_size: int
    context_window: int
    vocab_size: int
    rope_base: float

    @property
    def kv_bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * 2


class GgufFile:
    """A GGUF file's metadata by key, and its tensors. Opening it takes seconds for a large vocabulary."""

    def __init__(self, path: Path) -> None:
        """Raises ModelUnavailable if ``path`` is not a whole GGUF file of one part."""
        from gguf import GGUFReader

        try:
            self._reader = GGUFReader(path)
        except OSError as error:
            raise ModelUnavailable(f"{path.name} cannot be read: {error.strerror or error}.") from None
        except (ValueError, IndexError, KeyError, struct.error) as error:
            raise ModelUnavailable(
                f"{path.name} is not a GGUF file, or not all of it is there ({error}). Fetch it again."
            ) from None
        self.path = path
        if self.get("split.count", 1) > 1:
            raise ModelUnavailable(
                f"{path.name} is one part of a model that is split over several files, which cannot be loaded. "
                "Take a GGUF in one file, or join the parts with llama-gguf-split --merge."
            )
        self.architecture: str = self.need("general.architecture")

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``: a number, string, bool or list."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """The value of ``key``. Raises ModelUnavailable if the file has none."""
        value = self.get(key)
        if value is None:
            raise ModelUnavailable(f"{self.path.name} has no {key!r} in its metadata: it is not a chat model's file.")
        return value

    def own(self, key: str, default: Any = None) -> Any:
        """The value of the architecture's own ``key``, such as ``block_count``."""
        return self.get(f"{self.architecture}.{key}", default)

    def value_type(self, key: str) -> Any:
        """The ``gguf.GGUFValueType`` that ``key``'s value is stored in."""
        return self._reader.fields[key].types[0]

    @property
    def keys(self) -> list[str]:
        return list(self._reader.fields)

    @property
    def tensors(self) -> list[Any]:
        """``gguf.ReaderTensor`` for each tensor; their data is mapped, not read."""
        return list(self._reader.tensors)

    def hyperparameters(self) -> Hyperparameters:
        """Raises ModelUnavailable where one is missing or differs between layers."""
        heads, embedding = self._number("attention.head_count"), self._number("embedding_length")
        return Hyperparameters(
            layers=self._number("block_count"),
            heads=heads,
            kv_heads=self._number("attention.head_count_kv", heads),
            head_size=self._number("attention.key_length", embedding // heads),
            context_window=self._number("context_length"),
            vocab_size=len(self.need("tokenizer.ggml.tokens")),
            rope_base=float(self.own("rope.freq_base", 10000.0)),
        )

    def position_scaling(self) -> PositionScaling | None:
        """How positions are scaled, as llama.cpp reads it: linear if only a factor is there. None if they are not."""
        kind = str(self.own("rope.scaling.type", "linear"))
        factor = float(self.own("rope.scaling.factor") or self.own("rope.scale_linear") or 1.0)
        if kind == "none" or (kind == "linear" and factor == 1.0):
            return None
        return PositionScaling(kind, factor)

    def _number(self, key: str, default: int | None = None) -> int:
        value = self.own(key, default)
        if not isinstance(value, int) or value <= 0:
            raise ModelUnavailable(
                f"{self.path.name}: {self.architecture}.{key} is {value!r}, where one positive number is needed."
            )
        return value
