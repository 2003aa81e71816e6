"""Probes asked of an engine that speaks only OpenAI's API: vLLM's prompt_logprobs where offered, and greedy answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from tuner.errors import EngineCrashed
from tuner.scoring.probes import Probe, ProbeRecord
from tuner.serving.api import answers
from tuner.traffic.client import open_session

ANSWER_TOKENS = 48
CONCURRENT = 8
"""Requests at a time: agreement is not to be blamed on an overload."""
REQUEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class HttpAnswers:
    """texts: greedy answer to each forced probe, by probe id. records: of recall probes, and of forced ones where the
    engine offers prompt_logprobs."""

    texts: dict[str, str]
    records: tuple[ProbeRecord, ...]


async def ask_over_http(base_url: str, model: str, probes: Sequence[Probe]) -> HttpAnswers:
    """Ask every probe. Raises EngineCrashed for an answer that is none, aiohttp.ClientError when nobody answers."""
    gate = asyncio.Semaphore(CONCURRENT)
    async with open_session() as session:
        engine = _Engine(session, base_url.rstrip("/"), model, gate)
        forced = [probe for probe in probes if probe.kind == "forced"]
        recall = [probe for probe in probes if probe.kind == "recall"]
        texts = await asyncio.gather(*(engine.answer(probe, ANSWER_TOKENS) for probe in forced))
        records = list(await asyncio.gather(*(engine.recall(probe) for probe in recall)))
        first = await engine.forced(forced[0]) if forced else None
        if first is not None:
            rest = await asyncio.gather(*(engine.forced(probe) for probe in forced[1:]))
            records += [first, *(record for record in rest if record is not None)]
    return HttpAnswers({p.id: text for p, text in zip(forced, texts, strict=True)}, tuple(records))


class _Engine:
    def __init__(self, session: aiohttp.ClientSession, url: str, model: str, gate: asyncio.Semaphore) -> None:
        self._session, self._url, self._model, self._gate = session, url, model, gate

    async def answer(self, probe: Probe, tokens: int) -> str:
        return str((await self._complete(probe.prompt, max_tokens=tokens))["text"])

    async def recall(self, probe: Probe) -> ProbeRecord:
        assert isinstance(probe.target, str)
        text = await self.answer(probe, len(probe.target.encode()) + 1)
        correct = answers(text, probe.target.strip())
        return ProbeRecord(
            probe.id, probe.slice, probe.kind, correct=correct, gate=probe.gate, depth=probe.depth, length=probe.length
        )

    async def forced(self, probe: Probe) -> ProbeRecord | None:
        """None where the engine has no /tokenize or no prompt_logprobs."""
        prompt, target = await self._tokens(probe.prompt, True), await self._tokens(probe.target, False)
        if prompt is None or not target:
            return None
        choice = await self._complete([*prompt, *target], max_tokens=1, prompt_logprobs=1)
        listed = choice.get("prompt_logprobs")
        if not listed or len(listed) != len(prompt) + len(target):
            return None
        rows = listed[len(prompt) :]
        own = [row[str(token)]["logprob"] for row, token in zip(rows, target, strict=True)]
        top = [int(min(row, key=lambda token: row[token]["rank"])) for row in rows]
        return ProbeRecord(probe.id, probe.slice, probe.kind, tuple(target), tuple(own), tuple(top), gate=probe.gate)

    async def _tokens(self, text: Any, special: bool) -> list[int] | None:
        if not isinstance(text, str):
            return list(text)
        body = {"model": self._model, "prompt": text, "add_special_tokens": special}
        status, answer = await self._post("/tokenize", body)
        return list(answer["tokens"]) if status == 200 else None

    async def _complete(self, prompt: Any, **options: int) -> dict[str, Any]:
        body = {"model": self._model, "prompt": prompt, "temperature": 0.0, **options}
        status, answer = await self._post("/v1/completions", body)
        if status in (400, 422) and "prompt_logprobs" in options:
            return {}
        if status != 200:
            raise EngineCrashed(f"{self._url}/v1/completions answered {status}")
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    async def _post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        async with (
            self._gate,
            asyncio.timeout(REQUEST_SECONDS),
            self._session.post(self._url + path, data=msgspec.json.encode(body)) as response,
        ):
            text = await response.read()
            if response.status != 200:
                return response.status, {}
            try:
                return 200, msgspec.json.decode(text, type=dict[str, Any])
            except msgspec.DecodeError:
                raise EngineCrashed(f"{self._url}{path} answered what is not JSON") from None
