"""The engine's control endpoints, seen from the tuner: reconfigure, score, counters."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tuner.errors import ConfigRejected, EngineCrashed, EngineOutOfMemory
from tuner.scoring.quality import Probe, ProbeRecord
from tuner.traffic.client import complete, open_session

METRICS_PREFIX = "servetune:"
BUSY_SECONDS = 5.0
"""How long requests of a stopped replay may take to leave the engine before it is restarted instead."""
BUSY_POLL_SECONDS = 0.1


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
        waited = 0.0
        while True:
            status, message = await self._post_changes(changes, timeout)
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
        """All probes, in their order: forced ones in one /score call, then recall ones as concurrent completions."""
        forced = [probe for probe in probes if probe.kind == "forced"]
        recall = [probe for probe in probes if probe.kind == "recall"]
        records = {record.probe_id: record for record in await self._score(forced)} if forced else {}
        answers = await asyncio.gather(*(self._recall(model, probe) for probe in recall))
        records.update({record.probe_id: record for record in answers})
        return tuple(records[probe.id] for probe in probes)

    async def _post_changes(self, changes: dict[str, Any], timeout: float) -> tuple[int, str]:
        try:
            async with (
                asyncio.timeout(timeout),
                self._session.post(f"{self._base_url}/reconfigure", json={"changes": changes}) as response,
            ):
                return response.status, "" if response.status == 200 else await _message(response)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise NeedsRelaunch(type(error).__name__) from None

    async def _score(self, probes: Sequence[Probe]) -> list[ProbeRecord]:
        items = [{"prompt": probe.prompt, "target": probe.target} for probe in probes]
        async with self._session.post(f"{self._base_url}/score", json={"items": items}) as response:
            if response.status != 200:
                raise EngineCrashed(f"/score answered {response.status}: {await _message(response)}")
            scored = (await response.json())["items"]
        return [
            ProbeRecord(p.id, p.slice, p.kind, tuple(s["tokens"]), _numbers(s["logprobs"]), tuple(s["top_tokens"]))
            for p, s in zip(probes, scored, strict=True)
        ]

    async def _recall(self, model: str, probe: Probe) -> ProbeRecord:
        target = probe.target.strip()
        # No tokenizer here: a byte-level token holds at least one byte, and one more shows where the answer ends.
        text = await complete(self._session, self._base_url, model, probe.prompt, len(probe.target.encode()) + 1)
        return ProbeRecord(probe.id, probe.slice, probe.kind, correct=answers(text, target))


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
