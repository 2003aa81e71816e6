"""The HTTP API: OpenAI's endpoints, and /health, /metrics, /config, /reconfigure, /score."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from engine.core_client import CoreClient, EngineDied, OutputStream
from engine.draining import Answers
from engine.generation import Generation, Job, collect
from engine.json_http import JSON, errors_as_json, json_response, parse_body
from engine.metrics import Metrics
from engine.prompts import Prompts
from engine.protocol import (
    ApiError,
    ChatCompletionRequest,
    CompletionRequest,
    ReconfigureRequest,
    SamplingRequest,
    ScoreRequest,
)
from engine.responses import DONE, ChatFormat, CompletionFormat, Piece, ResponseFormat, ResponseOptions
from engine.sequence import SamplingParams
from engine.tokenizer import Tokenizer

MAX_BODY_BYTES = 32 * 2**20
HEALTH_TIMEOUT_S = 10.0
TENANT_HEADER = "X-Tenant"
CLASS_HEADER = "X-SLO-Class"
"""As replays send it and recordings read it."""
MAX_NAME_CHARS = 256


class Server:
    """The routes over one step loop. max_model_len: tokens, as the loaded model has it. answers: who is served now."""

    def __init__(self, core: CoreClient, tokenizer: Tokenizer, max_model_len: int) -> None:
        self.answers = Answers()
        self._core = core
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._metrics = Metrics(lambda: core.stats)
        self._prompts = Prompts(core, tokenizer, max_model_len, self._metrics)
        self._started = int(time.time())
        self._reconfiguring = asyncio.Lock()

    def application(self) -> web.Application:
        """Serve it with handler_cancellation, or the end of a connection will not abort its request."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[errors_as_json])
        counted = self.answers.counted
        app.add_routes([
            web.post("/v1/completions", counted(self.completions)),
            web.post("/v1/chat/completions", counted(self.chat_completions)),
            web.get("/v1/models", self.models),
            web.get("/health", self.health),
            web.get("/metrics", self.metrics),
            web.get("/config", self.config),
            web.post("/reconfigure", counted(self.reconfigure)),
            web.post("/reset_prefix_cache", counted(self.reset_prefix_cache)),
            web.post("/score", counted(self.score)),
            web.post("/tokenize", self._prompts.tokenize),
            web.post("/detokenize", self._prompts.detokenize),
        ])  # fmt: skip
        return app

    async def completions(self, request: web.Request) -> web.StreamResponse:
        arrival = time.perf_counter()
        body = await parse_body(CompletionRequest, request)
        self._check_model(body)
        prompt = self._prompts.fit(await self._prompts.encode(body.prompt, "prompt"), body.max_tokens, "max_tokens")
        options = ResponseOptions(_id("cmpl"), self._model_name, prompt, body.logprobs, body.return_token_ids)
        job = self._job(request, body, prompt, body.max_tokens, body.logprobs, arrival)
        return await self._answer(request, body, job, options, CompletionFormat(options))

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        arrival = time.perf_counter()
        body = await parse_body(ChatCompletionRequest, request)
        self._check_model(body)
        prompt = self._prompts.chat(body.messages)
        max_tokens = body.max_completion_tokens or body.max_tokens or self._prompts.answer_room(prompt)
        prompt = self._prompts.fit(
            prompt, max_tokens, "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        )
        num_top = body.top_logprobs if body.logprobs else None
        options = ResponseOptions(_id("chatcmpl"), self._model_name, prompt, num_top, body.return_token_ids)
        job = self._job(request, body, prompt, max_tokens, num_top, arrival)
        return await self._answer(request, body, job, options, ChatFormat(options))

    async def models(self, request: web.Request) -> web.Response:
        entry = {"id": self._model_name, "object": "model", "created": self._started, "owned_by": "servetune"}
        return json_response({"object": "list", "data": [{**entry, "max_model_len": self._max_model_len}]})

    async def health(self, request: web.Request) -> web.Response:
        """200 when the step loop answers, which it does between two steps; 503 too once the server is to end."""
        self.answers.check_open()
        if await self._core.ping(HEALTH_TIMEOUT_S):
            return web.Response()
        dead = self._core.death
        reason = dead.result().detail if dead.done() else f"the step loop has not answered for {HEALTH_TIMEOUT_S:g} s"
        raise ApiError(503, reason, code="engine_unavailable")

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def config(self, request: web.Request) -> web.Response:
        return json_response(self._core.config.model_dump())

    async def reconfigure(self, request: web.Request) -> web.Response:
        changes = (await parse_body(ReconfigureRequest, request)).changes
        async with self._reconfiguring:
            config = self._core.config
            try:
                wanted = config.updated(changes)
            except ValueError as error:
                raise ApiError(400, str(error), param="changes") from None
            cost = config.cost_of(wanted)
            if cost == "process":
                fields = [name for name in changes if config.cost_of(config.updated({name: changes[name]})) == cost]
                raise ApiError(409, f"a restart is needed to change {', '.join(fields)}", param=fields[0])
            seconds = 0.0
            if cost is not None:
                seconds = await self._apply(changes)
            return json_response({"cost": cost, "seconds": seconds, "config": self._core.config.model_dump()})

    async def reset_prefix_cache(self, request: web.Request) -> web.Response:
        """vLLM's name. Forgets whatever earlier requests left behind; 409 while there are any."""
        async with self._reconfiguring:
            # To apply a configuration anew empties the cache, and speculation's measurements with it.
            await self._apply(self._core.config.model_dump())
        return web.Response()

    async def score(self, request: web.Request) -> web.Response:
        """Log-probabilities of given tokens, read through the decode path: the quality that is served."""
        body = await parse_body(ScoreRequest, request)
        asked: list[tuple[list[int], SamplingParams]] = []
        for index, item in enumerate(body.items):
            prompt = await self._prompts.encode(item.prompt, f"items.{index}.prompt")
            target = await self._prompts.encode(item.target, f"items.{index}.target", add_special_tokens=False)
            listed = item.listed(body.list_top, len(target), self._tokenizer.vocab_size)
            params = SamplingParams(
                max_tokens=len(target), ignore_eos=True, logprobs=True, forced=tuple(target), listed=listed
            )
            asked.append((self._prompts.fit(prompt, len(target), f"items.{index}.target"), params))
        self._check_queue(sum(len(prompt) for prompt, _ in asked))
        streams: list[OutputStream] = []
        try:
            for prompt, params in asked:
                streams.append(self._submit(_id("score"), prompt, params, 0, _name(request, TENANT_HEADER)))
            items = [await _scores(stream) for stream in streams]
            for prompt, params in asked:
                served = {"prompt": len(prompt), "generated": params.max_tokens}
                self._metrics.tenants.serve(_name(request, TENANT_HEADER), **served)
                self._metrics.classes.serve(_name(request, CLASS_HEADER), **served)
            return json_response({"items": items})
        finally:
            for stream in streams:
                stream.close()

    async def _answer(
        self, request: web.Request, body: SamplingRequest, job: Job, options: ResponseOptions, shape: ResponseFormat
    ) -> web.StreamResponse:
        self._check_queue(len(job.prompt))
        stream = self._submit(options.request_id, job.prompt, job.params, job.priority, job.tenant)
        try:
            generation = Generation(job, stream, self._tokenizer, self._metrics)
            if body.stream:
                return await _stream(request, body, generation, shape)
            whole = await collect(generation)
            return web.Response(body=shape.whole(whole, generation.usage), content_type=JSON)
        finally:
            stream.close()

    async def _apply(self, changes: dict[str, Any]) -> float:
        if busy := self._core.num_requests:
            raise ApiError(409, f"{busy} requests are in flight; reconfigure when the engine is idle")
        try:
            outcome = await self._core.reconfigure(changes)
        except EngineDied as error:
            raise ApiError(503, str(error), code="engine_unavailable") from None
        if outcome.error is not None:
            raise ApiError(409, outcome.error, param="changes")
        return outcome.seconds

    def _job(
        self,
        request: web.Request,
        body: SamplingRequest,
        prompt: list[int],
        max_tokens: int,
        num_top_logprobs: int | None,
        arrival: float,
    ) -> Job:
        self._prompts.check_ids(list(body.logit_bias), "logit_bias")
        params = body.sampling(max_tokens, self._tokenizer.eos_token_ids, num_top_logprobs)
        tenant, slo_class = _name(request, TENANT_HEADER, body.user), _name(request, CLASS_HEADER)
        return Job(prompt, params, body.stop, body.return_token_ids, arrival, body.priority, tenant, slo_class)

    def _submit(
        self, request_id: str, prompt: list[int], params: SamplingParams, priority: int, tenant: str
    ) -> OutputStream:
        try:
            return self._core.submit(request_id, prompt, params, priority, tenant)
        except EngineDied as error:
            raise ApiError(503, str(error), code="engine_unavailable") from None

    def _check_queue(self, prompt_tokens: int) -> None:
        refusal = self._core.waiting_room.refusal(self._core.config, self._core.stats, prompt_tokens)
        if refusal is not None:
            self._metrics.refused(refusal.kind)
            raise refusal

    @property
    def _model_name(self) -> str:
        return Path(self._core.config.model).name

    def _check_model(self, body: SamplingRequest) -> None:
        if body.model not in (None, self._model_name, self._core.config.model):
            message = f"model: {body.model!r} is not served here; {self._model_name!r} is"
            raise ApiError(404, message, param="model", code="model_not_found")


async def _stream(
    request: web.Request, body: SamplingRequest, generation: Generation, shape: ResponseFormat
) -> web.StreamResponse:
    pieces = generation.pieces()
    first = await anext(pieces)  # a refusal by the engine comes here, while the status can still be chosen
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)
    try:
        await _write_pieces(response, first, pieces, shape)
        if body.stream_options.include_usage:
            await response.write(shape.usage_chunk(generation.usage))
        await response.write(DONE)
    except EngineDied as error:
        await response.write(b"data: " + ApiError(500, str(error), code="engine_died").body() + b"\n\n")
    except ConnectionResetError:  # the client left between two chunks
        return response
    await response.write_eof()
    return response


async def _write_pieces(
    response: web.StreamResponse, first: Piece, pieces: AsyncIterator[Piece], shape: ResponseFormat
) -> None:
    await response.write(shape.chunk(first, first=True))
    async for piece in pieces:
        await response.write(shape.chunk(piece, first=False))


async def _scores(stream: OutputStream) -> dict[str, Any]:
    """listed_ids, listed_logprobs: see engine.layers.listing; base64 in JSON."""
    scores: dict[str, Any] = {"tokens": [], "logprobs": [], "top_tokens": []}
    listed = {"listed_ids": b"", "listed_logprobs": b""}
    finished = False
    while not finished:
        output = await stream.next()
        scores["tokens"] += output.tokens
        scores["logprobs"] += output.logprobs
        scores["top_tokens"] += [top[0][0] for top in output.top_logprobs]
        listed["listed_ids"] += output.listed_ids
        listed["listed_logprobs"] += output.listed_logprobs
        finished = output.finish_reason is not None
    return scores | {name: data for name, data in listed.items() if data}


def _name(request: web.Request, header: str, otherwise: str | None = None) -> str:
    name = (request.headers.get(header) or otherwise or "")[:MAX_NAME_CHARS]
    return name.encode(errors="replace").decode()  # bytes of a header that are not UTF-8 come as lone surrogates


def _id(kind: str) -> str:
    return f"{kind}-{uuid.uuid4().hex}"
