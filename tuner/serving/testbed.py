"""LiveTestbed: one warm engine process, reconfigured or relaunched, loaded with traffic, asked the probes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import aiohttp

from tuner.errors import EngineCrashed
from tuner.scoring.probes import SCREEN, Probe, ProbeRecord
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving import adapters, lossless
from tuner.serving.api import EngineApi, NeedsRelaunch
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.serving.process import EngineProcess, launch
from tuner.serving.watchdog import Watchdog
from tuner.traffic.client import send
from tuner.traffic.replay import Progress, Replay, Stop, replay
from tuner.traffic.trace import Request

WARM_UP_REQUESTS = 2
WARM_UP_TOKENS = 4
DYING_SECONDS = 3.0
"""A dying engine breaks its connections some time before it exits; its exit status says why."""
BROKEN = frozenset({"refused", "connection", "truncated", "protocol", "http_5xx"})
"""Errors of a request that a dying engine leaves behind."""

OnPhase = Callable[[str, float], None]
"""Told the phase ("launch", "reconfigure", "replay", "quality") and the share of it that is done, 0 to 1."""
Hopeless = Callable[[Sequence[ProbeRecord]], bool]
"""Whether the answers to the first gate rule every acceptance out."""
_T = TypeVar("_T")


def never(records: Sequence[ProbeRecord]) -> bool:
    """Ask every gate."""
    return False


@dataclass(frozen=True, slots=True)
class Load:
    """What a replay offers. span: seconds of the trace. drain_timeout: seconds after the last arrival."""

    requests: tuple[Request, ...]
    span: float
    window: str
    time_scale: float
    drain_timeout: float

    @property
    def duration(self) -> float:
        """Seconds over which arrivals are offered."""
        return self.span / self.time_scale


class Testbed(Protocol):
    """What a study needs of the engine under test. Both calls raise ServingError when the engine fails."""

    def measure(
        self,
        config: ServingConfig,
        load: Load,
        *,
        purpose: Purpose,
        probes: Sequence[Probe] | None,
        stop: Stop | None,
        hopeless: Hopeless = never,
    ) -> Measurement:
        """Replay `load`, then ask `probes`, those of gate SCREEN first and no others when these are hopeless. Without
        any, or after a stopped replay, there are no probe records."""

    def answer(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[ProbeRecord, ...]:
        """Ask the probes only."""

    def speculation(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[DomainSpeculation, ...]:
        """Greedy answers to the probes' prompts with the configuration's speculation and without it."""

    def close(self) -> None:
        """End the engine."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How to run the engine. launcher: command before --config, empty for the bundled engine. directory: where its
    configuration and log files go. launch_timeout: seconds until it must listen. hang_timeout: seconds without any
    progress, while requests are outstanding, after which it counts as hung."""

    directory: Path
    launcher: tuple[str, ...] = ()
    launch_timeout: float = 120.0
    hang_timeout: float = 30.0


class LiveTestbed:
    """The testbed over a real engine. Use it in a `with`: leaving ends the engine, whatever happened."""

    def __init__(
        self, settings: EngineSettings, environment: dict[str, Any], on_phase: OnPhase = lambda phase, share: None
    ) -> None:
        self._settings = settings
        self._environment = environment
        self._on_phase = on_phase
        self._runner = asyncio.Runner()
        self._process: EngineProcess | None = None
        self._running: ServingConfig | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def measure(
        self,
        config: ServingConfig,
        load: Load,
        *,
        purpose: Purpose,
        probes: Sequence[Probe] | None,
        stop: Stop | None,
        hopeless: Hopeless = never,
    ) -> Measurement:
        """See Testbed. The early-stopped part of a replay counts as offered: duration is that of the whole window, and
        longer where the last turn of a session was sent after it."""
        return self._runner.run(self._guarded(self._measure(config, load, purpose, probes or (), stop, hopeless)))

    def answer(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[ProbeRecord, ...]:
        """See Testbed."""
        return self._runner.run(self._guarded(self._answer(config, probes)))

    def speculation(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[DomainSpeculation, ...]:
        """See Testbed."""
        return self._runner.run(self._guarded(self._speculation(config, probes)))

    def close(self) -> None:
        """End the engine and the event loop. May be called twice."""
        if self._process is not None:
            self._runner.run(self._stop())
        self._runner.close()

    async def _guarded(self, work: Coroutine[Any, Any, _T]) -> _T:
        """After any failure the engine's state is unknown: the next configuration gets a fresh process."""
        try:
            return await work
        except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            failure = None if self._process is None else await self._process.await_failure(DYING_SECONDS)
            await self._stop()
            raise failure or EngineCrashed(f"no answer: {type(error).__name__}") from None
        except BaseException:
            await self._stop()
            raise

    async def _measure(
        self,
        config: ServingConfig,
        load: Load,
        purpose: Purpose,
        probes: Sequence[Probe],
        stop: Stop | None,
        hopeless: Hopeless,
    ) -> Measurement:
        seconds: dict[str, float] = {}
        with _timed(seconds, "reconfigure"):
            warm = await self._apply(config)
            process = self._alive()
            async with EngineApi(process.base_url) as api:
                model = await api.model_name()
            await self._warm_up(load.requests, model)
        async with EngineApi(process.base_url) as api:
            if adapters.engine_config(config).enable_prefix_caching:
                # Neither the warm-up nor an earlier measurement may leave hits behind for this one.
                await api.reset_prefix_cache(self._settings.launch_timeout)
            before = await api.counters()
            with _timed(seconds, "replay"):
                replayed = await self._replay(api, load, model, stop)
            after = await api.counters()
            with _timed(seconds, "quality"):
                asked = probes if replayed.stopped is None else ()
                answers = await self._ask(api, model, config, [p for p in asked if p.gate == SCREEN])
                if not (answers and hopeless(answers)):
                    answers += await self._ask(api, model, config, [p for p in asked if p.gate > SCREEN])
        return Measurement(
            config=config,
            purpose=purpose,
            window=load.window,
            time_scale=load.time_scale,
            duration=max(load.duration, replayed.duration),
            records=replayed.records,
            probes=answers,
            environment=self._environment,
            seconds=seconds,
            engine_metrics={name: value - before.get(name, 0.0) for name, value in after.items()},
            stopped=replayed.stopped,
            warm=warm,
        )

    async def _answer(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[ProbeRecord, ...]:
        await self._apply(config)
        async with EngineApi(self._alive().base_url) as api:
            return await self._ask(api, await api.model_name(), config, probes)

    async def _speculation(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[DomainSpeculation, ...]:
        if not lossless.domains(probes):
            return ()
        runs = []
        for applied in (config, adapters.without_speculation(config)):
            await self._apply(applied)
            async with EngineApi(self._alive().base_url) as api:
                runs.append(await lossless.decode(api, await api.model_name(), probes))
        return lossless.compare(adapters.engine_config(config).num_speculative_tokens, *runs)

    async def _apply(self, config: ServingConfig) -> bool:
        """Make the engine run `config`. Returns whether the process is the one that ran before."""
        if self._process is not None and self._process.failure() is None and self._running is not None:
            if (cost := adapters.change_cost(self._running, config)) is None:
                return True
            if cost != "process" and await self._reconfigure(self._process, self._running, config):
                self._running = config
                return True
        await self._relaunch(config)
        return False

    async def _reconfigure(self, process: EngineProcess, old: ServingConfig, new: ServingConfig) -> bool:
        """Whether the running engine took the change. Raises ConfigRejected when it says that it never will."""
        self._on_phase("reconfigure", 0.0)
        async with EngineApi(process.base_url) as api:
            try:
                await api.reconfigure(adapters.changes(old, new), self._settings.launch_timeout)
            except NeedsRelaunch:
                return False
        return True

    async def _relaunch(self, config: ServingConfig) -> None:
        settings = self._settings
        await self._stop()
        self._on_phase("launch", 0.0)
        path = adapters.write_config(config, settings.directory)
        command = adapters.command(path, settings.launcher)
        self._process = await launch(command, {}, settings.directory / "engine.log", settings.launch_timeout)
        self._running = config

    async def _warm_up(self, requests: Sequence[Request], model: str) -> None:
        """A few tokens with the new configuration, so that no recorded request pays for first-time allocations."""
        first = [replace(r, output_tokens=None, max_tokens=WARM_UP_TOKENS) for r in requests[:WARM_UP_REQUESTS]]
        process, start = self._alive(), asyncio.get_running_loop().time()
        async with EngineApi(process.base_url) as api:
            watchdog = Watchdog(process, api, self._settings.hang_timeout)
            await watchdog.run(asyncio.gather(*(send(process.base_url, model, r, start) for r in first)))

    async def _replay(self, api: EngineApi, load: Load, model: str, stop: Stop | None) -> Replay:
        watchdog = Watchdog(process := self._alive(), api, self._settings.hang_timeout)

        def note(progress: Progress) -> None:
            watchdog.outstanding = progress.offered > progress.finished
            watchdog.finished = progress.finished
            self._on_phase("replay", min(progress.elapsed / max(load.duration, 1e-9), 1.0))

        sending = replay(
            load.requests,
            process.base_url,
            model,
            time_scale=load.time_scale,
            drain_timeout=load.drain_timeout,
            stop=stop,
            on_progress=note,
            token_ids=True,
            span=load.span,
        )
        replayed = await watchdog.run(asyncio.ensure_future(sending))
        broken = any(record.error in BROKEN for record in replayed.records)
        if broken and (failure := await process.await_failure(DYING_SECONDS)) is not None:
            raise failure
        return replayed

    async def _ask(
        self, api: EngineApi, model: str, config: ServingConfig, probes: Sequence[Probe]
    ) -> tuple[ProbeRecord, ...]:
        """Through the same serving path, in batches that need not respect the SLOs."""
        if not probes:
            return ()
        await self._apply(adapters.for_probes(config))
        self._on_phase("quality", 0.0)
        watchdog = Watchdog(self._alive(), api, self._settings.hang_timeout)
        return await watchdog.run(asyncio.ensure_future(api.ask(model, probes)))

    async def _stop(self) -> None:
        process, self._process, self._running = self._process, None, None
        if process is not None:
            await process.stop()

    def _alive(self) -> EngineProcess:
        assert self._process is not None
        return self._process


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start
