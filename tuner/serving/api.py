"""The engine's control endpoints, seen from the tuner: reconfigure, score, counters."""

from __future__ import annotations

import asyncio
import base64
import math
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from tuner.errors import ConfigRejected, EngineCrashed, EngineOutOfMemory
from tuner.scoring.probes import LISTED, Probe, ProbeRecord
from tuner.traffic.client import complete, open_session

METRICS_PREFIX = "servetune:"
BUSY_SECONDS = 5.0
"""How long requests of a stopped replay may take to leave the engine before it is restarted instead."""
BUSY_POLL_SECONDS = 0.1
ANSWER_TOKENS = 32
"""Of the reference's own answer to a prompt of the recorded traffic."""


class NeedsRelaunch(Exception):
    """The running process cannot take the change; a fresh one can."""


class EngineApi:
    """One engine's control endpoints, in an `async with`. Network failures are aiohttp.ClientError and OSError."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._session = open_session()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def model_name(self, timeout: float = 10.0) -> str:
        """The name under which the engine serves its model. Raises TimeoutError after `timeout` seconds."""
        limit = aiohttp.ClientTimeout(total=timeout)
        async with self._session.get(f"{self._base_url}/v1/models", timeout=limit) as response:
            response.raise_for_status()
            return str((await response.json())["data"][0]["id"])

    async def counters(self, timeout: float = 10.0) -> dict[str, float]:
        """Totals since the engine's start, names without prefix; empty when there is no answer in `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout), self._session.get(f"{self._base_url}/metrics") as response:
                text = await response.text()
        except (TimeoutError, aiohttp.ClientError, OSError):
            return {}
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return {
            sample.name.removeprefix(METRICS_PREFIX).removesuffix("_total"): sample.value
            for sample in samples
            if sample.name.startswith(METRICS_PREFIX) and sample.name.endswith("_total") and not sample.labels
        }

    async def reconfigure(self, changes: dict[str, Any], timeout: float) -> None:
        """Apply `changes`. Raises ConfigRejected, EngineOutOfMemory, or NeedsRelaunch when only a restart helps."""
        await self._when_idle("/reconfigure", {"changes": changes}, timeout)

    async def reset_prefix_cache(self, timeout: float) -> None:
        """Forget what earlier requests left in the cache. Raises as `reconfigure` does."""
        await self._when_idle("/reset_prefix_cache", {}, timeout)

    async def _when_idle(self, path: str, body: dict[str, Any], timeout: float) -> None:
        waited = 0.0
        while True:
            status, message = await self._post(path, body, timeout)
            if status == 200:
                return
            if "memory" in message.lower() and status == 409:
                raise EngineOutOfMemory(message)
            if status == 409 and "in flight" in message and waited < BUSY_SECONDS:
                await asyncio.sleep(BUSY_POLL_SECONDS)
                waited += BUSY_POLL_SECONDS
                continue
            if status == 400 or (status == 409 and "in flight" not in message and "restart" not in message):
                raise ConfigRejected(message)
            raise NeedsRelaunch(message)

    async def ask(self, model: str, probes: Sequence[Probe]) -> tuple[ProbeRecord, ...]:
        """All probes, in their order: forced ones in one /score call, then recall ones as concurrent completions.

        A forced probe without a target is asked for its greedy answer first.
        """
        forced = await asyncio.gather(*(self._with_target(model, p) for p in probes if p.kind == "forced"))
        recall = [probe for probe in probes if probe.kind == "recall"]
        records = {record.probe_id: record for record in await self._score(forced)} if forced else {}
        answers = await asyncio.gather(*(self._recall(model, probe) for probe in recall))
        records.update({record.probe_id: record for record in answers})
        return tuple(records[probe.id] for probe in probes)

    async def _post(self, path: str, body: dict[str, Any], timeout: float) -> tuple[int, str]:
        try:
            async with (
                asyncio.timeout(timeout),
                self._session.post(f"{self._base_url}{path}", json=body) as response,
            ):
                return response.status, "" if response.status == 200 else await _message(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise NeedsRelaunch(type(error).__name__) from None

    async def _with_target(self, model: str, probe: Probe) -> Probe:
        """The probe with tokens where it has chat messages, and with the model's own answer where it has no target."""
        prompt = probe.prompt
        if isinstance(prompt, tuple) and isinstance(prompt[0], dict):
            prompt = tuple((await self.post("/tokenize", {"messages": prompt}))["tokens"])
        target = probe.target
        if not target:
            body = {"model": model, "prompt": prompt, "max_tokens": ANSWER_TOKENS, "temperature": 0.0}
            answer = await self.post("/v1/completions", {**body, "return_token_ids": True})
            target = tuple(answer["choices"][0]["token_ids"])
        return replace(probe, prompt=prompt, target=target)

    async def _score(self, probes: Sequence[Probe]) -> list[ProbeRecord]:
        items: list[dict[str, Any]] = [{"prompt": probe.prompt, "target": probe.target} for probe in probes]
        for item, probe in zip(items, probes, strict=True):
            if probe.listed_ids:
                item["listed_ids"] = base64.b64encode(probe.listed_ids).decode()
        scored = (await self.post("/score", {"items": items, "list_top": LISTED}))["items"]
        return [_forced_record(probe, found) for probe, found in zip(probes, scored, strict=True)]

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a JSON request. Raises EngineCrashed for any other."""
        async with self._session.post(self._base_url + path, data=msgspec.json.encode(body)) as response:
            if response.status != 200:
                raise EngineCrashed(f"{path} answered {response.status}: {await _message(response)}")
            text = await response.read()
        try:
            answer: dict[str, Any] = msgspec.json.decode(text)
        except msgspec.DecodeError:
            raise EngineCrashed(f"{path} answered what is not JSON") from None
        return answer

    async def _recall(self, model: str, probe: Probe) -> ProbeRecord:
        assert isinstance(probe.target, str), f"{probe.id}: a recall probe is compared as text"
        target = probe.target.strip()
        # No tokenizer here: a byte-level token holds at least one byte, and one more shows where the answer ends.
        text = await complete(self._session, self._base_url, model, probe.prompt, len(probe.target.encode()) + 1)
        return replace(_record(probe), correct=answers(text, target))


def _record(probe: Probe) -> ProbeRecord:
    return ProbeRecord(probe.id, probe.slice, probe.kind, gate=probe.gate, depth=probe.depth, length=probe.length)


def _forced_record(probe: Probe, found: dict[str, Any]) -> ProbeRecord:
    return replace(
        _record(probe),
        tokens=tuple(found["tokens"]),
        logprobs=_numbers(found["logprobs"]),
        top_tokens=tuple(found["top_tokens"]),
        # The ids that were asked for are the reference's and are stored with it.
        listed_ids=b"" if probe.listed_ids else base64.b64decode(found.get("listed_ids", "")),
        listed_logprobs=base64.b64decode(found.get("listed_logprobs", "")),
    )


def answers(text: str, target: str) -> bool:
    """Whether a generated text begins with the target as a whole word; what the model says after it does not count."""
    text = text.strip()
    if not text.startswith(target):
        return False
    rest = text[len(target) :]
    return not (rest and rest[0].isalnum() and target[-1:].isalnum())


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    """JSON has no NaN: a log-probability that is none comes as null."""
    return tuple(math.nan if value is None else value for value in values)


async def _message(response: aiohttp.ClientResponse) -> str:
    """The message of an OpenAI-style error body, at most 300 characters."""
    try:
        return str((await response.json(content_type=None))["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status}"
