"""``prompt_tokens_details.cached_tokens`` over HTTP, of the default model on OpenVINO."""

from __future__ import annotations

import pytest

from causerie.chat.build import build_service
from causerie.config import Settings
from tests.web.test_openai_client import client_of

pytestmark = pytest.mark.model


async def test_cached_tokens_are_what_was_cached_before_the_request(default_folder: object) -> None:
    service = build_service(Settings(engine="openvino", prefill_piece=64, kv_cache_gib=0.1))
    async with client_of(service) as client:

        async def counts(text: str, n: int = 1) -> tuple[int, int | None]:
            answer = await client.chat.completions.create(
                model="default", messages=[{"role": "user", "content": text}], max_tokens=2, temperature=0, n=n
            )
            assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
            return answer.usage.prompt_tokens, answer.usage.prompt_tokens_details.cached_tokens

        story = "There was a king who had twelve daughters, and they slept in twelve beds in one room. " * 12
        tokens, cached = await counts(story)
        assert tokens > 200
        # What stands before the story is all that it shares with anything, and it is less than a block.
        assert cached == 0
        # The block in which the prompt ended went on with the answer, so it is not the prompt's any more.
        assert await counts(story) == (tokens, tokens // 32 * 32)
        longer, cached = await counts(story + "Who were they?")
        assert tokens - 40 < (cached or 0) < tokens < longer
        assert (await counts("Tell me of another king. " * 30, n=2))[1] in range(33)
