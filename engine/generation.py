"""One running request: engine outputs in, pieces of text out, with stop strings, counts and metrics."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from engine.core_client import OutputStream
from engine.metrics import Metrics
from engine.responses import Piece, Usage
from engine.sequence import FinishReason, SamplingParams, SequenceOutput
from engine.tokenizer import REPLACEMENT, Detokenizer, Tokenizer


@dataclass(frozen=True)
class Job:
    """What a request asked for. arrival: time.perf_counter() seconds. every_step: a piece a step, even without text.

    priority, tenant: for the scheduling policy. slo_class: for the metrics.
    """

    prompt: list[int]
    params: SamplingParams
    stop: list[str]
    every_step: bool
    arrival: float
    priority: int
    tenant: str
    slo_class: str = ""


class Generation:
    """Iterate `pieces` once; the last piece has a finish_reason."""

    def __init__(self, job: Job, stream: OutputStream, tokenizer: Tokenizer, metrics: Metrics) -> None:
        self._job = job
        self._stream = stream
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._detokenizer = Detokenizer(tokenizer, job.prompt, job.stop)
        self._num_tokens = 0
        self._first_at = 0.0
        self._last_at = 0.0

    @property
    def usage(self) -> Usage:
        """Counts so far; a token after which the request was stopped counts, later ones of the same step do not."""
        prompt = len(self._job.prompt)
        return Usage(prompt, self._num_tokens, prompt + self._num_tokens)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Raises RequestRejected before the first piece, EngineDied at any."""
        piece = Piece()
        while piece.finish_reason is None:
            output = await self._stream.next()
            self._count_service(output)
            self._add(piece, output)
            self._observe(piece.finish_reason)
            if piece.text or piece.finish_reason or self._job.every_step:
                yield piece
                if piece.finish_reason is None:
                    piece = Piece()

    def _add(self, piece: Piece, output: SequenceOutput) -> None:
        finish_reason = output.finish_reason
        for index, token in enumerate(output.tokens):
            self._num_tokens += 1
            piece.tokens.append(token)
            if self._job.params.logprobs:
                self._list(piece, output, index)
            if finish_reason == "stop" and token in self._job.params.stop_token_ids:
                break  # the end-of-sequence token is counted and listed, but is no text
            piece.text += self._detokenizer.add(token)
            if self._job.params.logprobs and REPLACEMENT not in (own := piece.token_texts[-1]):
                # What was left of a broken character before this token comes out together with it.
                piece.text_offsets[-1] = max(piece.text_offsets[-1], self._detokenizer.length - len(own))
            if self._detokenizer.stopped:
                finish_reason = "stop"
                break
        if finish_reason is not None:
            piece.text += self._detokenizer.finish()
        piece.finish_reason = finish_reason

    def _list(self, piece: Piece, output: SequenceOutput, index: int) -> None:
        """What is told beside token `index` of this step when log-probabilities were asked for."""
        piece.logprobs.append(output.logprobs[index])
        piece.token_texts.append(self._tokenizer.token_text(output.tokens[index]))
        piece.text_offsets.append(self._detokenizer.length)
        wanted = output.top_logprobs[index][: self._job.params.top_logprobs]
        piece.top_logprobs.append([(self._tokenizer.token_text(top), x) for top, x in wanted])

    def _count_service(self, output: SequenceOutput) -> None:
        prompt, generated = 0 if self._num_tokens else len(self._job.prompt), len(output.tokens)
        guesses = {"drafted": output.num_drafted, "accepted": output.num_accepted}
        self._metrics.tenants.serve(self._job.tenant, prompt=prompt, generated=generated, **guesses)
        self._metrics.classes.serve(self._job.slo_class, prompt=prompt, generated=generated, **guesses)

    def _observe(self, finish_reason: FinishReason | None) -> None:
        now = time.perf_counter()
        if self._first_at:
            self._metrics.step_gap(now - self._last_at)
        else:
            self._first_at = now
            self._metrics.first_token(now - self._job.arrival)
        self._last_at = now
        if finish_reason is not None:
            self._metrics.finished(
                finish_reason, len(self._job.prompt), self._num_tokens, now - self._job.arrival, now - self._first_at
            )


async def collect(generation: Generation) -> Piece:
    """The whole answer as one piece. Raises RequestRejected or EngineDied."""
    whole = Piece()
    async for piece in generation.pieces():
        whole.text += piece.text
        whole.tokens += piece.tokens
        whole.logprobs += piece.logprobs
        whole.token_texts += piece.token_texts
        whole.text_offsets += piece.text_offsets
        whole.top_logprobs += piece.top_logprobs
        whole.finish_reason = piece.finish_reason
    return whole
