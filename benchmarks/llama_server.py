"""llama.cpp's server put through the same examination: it takes token ids and tells the chosen one's probability."""

from __future__ import annotations

import http.client
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit


class LlamaServer:
    """A running llama-server on the default model's own file. Has ``RawEngine``'s two methods of faithfulness."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=60)

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
        return [self._complete(prompt, tokens)["tokens"] for prompt in prompts]

    def forced(self, prompts: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> list[list[tuple[int, float]]]:
        """One request for each position; the server's prompt cache makes that cheap."""
        return [
            [self._next([*prompt, *text[:at]]) for at in range(len(text))]
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _next(self, ids: Sequence[int]) -> tuple[int, float]:
        (chosen,) = self._complete(ids, 1)["completion_probabilities"]
        return int(chosen["id"]), float(chosen["logprob"])

    def _complete(self, ids: Sequence[int], tokens: int) -> dict[str, Any]:
        body = {"prompt": list(ids), "n_predict": tokens, "temperature": 0, "n_probs": 1, "return_tokens": True}
        self._connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {response.status}: {answer}")
        return dict(answer)
