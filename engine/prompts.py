"""Prompts as clients give them to the token ids that the engine gets: tokenising, checking, cutting to length."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from engine.core_client import CoreClient
from engine.json_http import json_response, parse_body
from engine.metrics import Metrics
from engine.protocol import ApiError, DetokenizeRequest, Message, Prompt, TokenizeRequest
from engine.tokenizer import Tokenizer

LONG_TEXT_CHARS = 20_000
"""Longer texts are tokenised in a thread, so that the streams of others go on."""
ANSWER_TOKENS = 256
"""Room, at most a quarter of the context, that truncation leaves for the answer of a chat without a limit."""


class Prompts:
    """max_model_len: tokens of prompt and output together. What becomes of longer ones: `prompt_truncation`."""

    def __init__(self, core: CoreClient, tokenizer: Tokenizer, max_model_len: int, metrics: Metrics) -> None:
        self._core = core
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._metrics = metrics

    async def encode(self, prompt: Prompt, field: str, add_special_tokens: bool = True) -> list[int]:
        """Raises ApiError 400 for no tokens and for ids outside the vocabulary."""
        ids = prompt if isinstance(prompt, list) else await self._tokenize(prompt, add_special_tokens)
        if not ids:
            raise ApiError(400, f"{field}: no tokens; at least one is needed", param=field)
        self.check_ids(ids, field)
        return ids

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Raises ApiError 400 when the checkpoint's chat template refuses them."""
        try:
            return self._tokenizer.apply_chat_template(
                [message.model_dump(exclude_none=True) for message in messages], add_generation_prompt
            )
        except ValueError as error:
            raise ApiError(400, str(error), param="messages") from None

    def check_ids(self, ids: list[int], field: str) -> None:
        if ids and not 0 <= min(ids) <= max(ids) < self._tokenizer.vocab_size:
            message = f"{field}: token ids must lie in [0, {self._tokenizer.vocab_size})"
            raise ApiError(400, message, param=field)

    def answer_room(self, prompt: list[int]) -> int:
        """Tokens that the answer to a chat without a limit may have: the rest of the context."""
        rest = self._max_model_len - len(prompt)
        if rest >= 1 or self._core.config.prompt_truncation == "refuse":
            return max(rest, 1)
        return max(min(ANSWER_TOKENS, self._max_model_len // 4), 1)

    def fit(self, prompt: list[int], new_tokens: int, field: str) -> list[int]:
        """The prompt, or what `prompt_truncation` leaves of it. Raises ApiError 400: context_length_exceeded."""
        limit = self._max_model_len - new_tokens
        if len(prompt) <= limit:
            return prompt
        how = self._core.config.prompt_truncation
        if how == "refuse" or limit < 1:
            raise ApiError(
                400,
                f"{field}: {len(prompt)} prompt tokens and {new_tokens} more exceed "
                f"max_model_len = {self._max_model_len} tokens",
                param=field,
                code="context_length_exceeded",
            )
        self._metrics.truncated(len(prompt) - limit)
        return truncated(prompt, limit, how, self._tokenizer.is_special(prompt[0]))

    async def tokenize(self, request: web.Request) -> web.Response:
        """vLLM's POST /tokenize."""
        body = await parse_body(TokenizeRequest, request)
        if body.messages is not None:
            ids = self.chat(body.messages, body.add_generation_prompt)
        else:
            assert body.prompt is not None
            ids = await self._tokenize(body.prompt, body.add_special_tokens)
        texts = [self._tokenizer.token_text(id) for id in ids] if body.return_token_strs else None
        return json_response(
            {"count": len(ids), "max_model_len": self._max_model_len, "tokens": ids, "token_strs": texts}
        )

    async def detokenize(self, request: web.Request) -> web.Response:
        """vLLM's POST /detokenize."""
        body = await parse_body(DetokenizeRequest, request)
        self.check_ids(body.tokens, "tokens")
        return json_response({"prompt": self._tokenizer.decode(body.tokens, skip_special_tokens=False)})

    async def _tokenize(self, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) > LONG_TEXT_CHARS:
            return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens)
        return self._tokenizer.encode(text, add_special_tokens)


def truncated(prompt: list[int], limit: int, how: str, begins_special: bool) -> list[int]:
    """`limit` tokens of a longer prompt. begins_special: its first token is one like BOS, which models rely on.

    keep_tail: the last ones, after a special first token. keep_head_and_tail: half from each end, the tail's half the
    larger (LongBench, Bai et al. 2023, cuts its over-long prompts so: instructions stand at either end).
    """
    head = limit // 2 if how == "keep_head_and_tail" else int(begins_special and limit > 1)
    return prompt[:head] + prompt[len(prompt) - (limit - head) :]
