"""Simulated replays: the engine's own scheduler on a virtual clock, with this machine's step times.

The records have the shape of a real replay's, so that the same scoring reads them. They order configurations and are
never a measurement: nothing of them is stored or told to the sampler as one.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from engine.profile import Profile
from engine.simulator import Answer, Arrival, Simulation
from engine.tokenizer import Tokenizer
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import Load
from tuner.traffic.exchange import expected_tokens
from tuner.traffic.replay import Progress, Stop
from tuner.traffic.trace import Request, RequestRecord

CHECK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class SimulatedReplay:
    """records: in the order of the load's requests. duration: see Measurement. stopped: as of a real replay.

    seconds: of the virtual clock. steps: forward passes.
    """

    records: tuple[RequestRecord, ...]
    duration: float
    stopped: str | None
    seconds: float
    steps: int


class Simulator:
    """Replays loads with the step times of one profile. prompts: token ids by request, see prompt_tokens.

    Keeps what depends on prompts alone from one replay to the next.
    """

    def __init__(self, profile: Profile, prompts: Mapping[str, tuple[int, ...]]) -> None:
        self.profile, self._prompts = profile, prompts
        self._hashes: dict[tuple[str, int], list[bytes]] = {}

    def slower(self, factor: float) -> Simulator:
        """See Profile.slower."""
        other = Simulator(self.profile.slower(factor), self._prompts)
        other._hashes = self._hashes
        return other

    def replay(self, config: ServingConfig, load: Load, stop: Stop | None = None) -> SimulatedReplay:
        """Raises ValueError for a configuration that the profile does not cover, a prompt whose tokens it does not know
        and a memory that holds no page; ConfigRejected for one that cannot be."""
        turns = _Turns(load, self._prompts)
        first = turns.first()
        last = max((arrival.at for arrival in first), default=0.0)
        simulation = Simulation(
            adapters.engine_config(config),
            self.profile,
            first,
            until=math.inf if turns.later else last + load.drain_timeout,
            following=turns.after,
            hashes=self._hashes,
        )
        stopped = None
        if stop is None:
            simulation.run()
        else:
            stopped = _watched(simulation, load, turns, stop)
        records = tuple(turns.record(request, simulation, stopped) for request in load.requests)
        sent = max((record.scheduled for record in records if record.sent is not None), default=0.0)
        return SimulatedReplay(
            records, max(load.duration, sent), stopped, simulation.now, simulation.engine.stats().steps
        )


class _Turns:
    """The requests of a load as arrivals: those at their time, and later turns of a session after the one before."""

    def __init__(self, load: Load, prompts: Mapping[str, tuple[int, ...]]) -> None:
        self._scale, self._prompts = load.time_scale, prompts
        self._requests = {request.id: request for request in load.requests}
        self.later: defaultdict[str, deque[Request]] = defaultdict(deque)
        self._first: list[Request] = []
        begun: set[str] = set()
        for request in load.requests:
            if request.session is not None and request.session in begun:
                self.later[request.session].append(request)
                continue
            if request.session is not None:
                begun.add(request.session)
            self._first.append(request)

    def first(self) -> list[Arrival]:
        return [self._arrival(request, request.arrival / self._scale) for request in self._first]

    def after(self, answer: Answer) -> Arrival | None:
        """The next turn: see Schedule."""
        session = self._requests[answer.arrival.name].session
        if session is None or answer.error is not None or not self.later[session]:
            return None
        request, end = self.later[session].popleft(), answer.times[-1]
        if request.think_time is None:
            return self._arrival(request, max(request.arrival / self._scale, end))
        return self._arrival(request, end + request.think_time / self._scale)

    def _arrival(self, request: Request, at: float) -> Arrival:
        output = expected_tokens(request) or request.max_tokens
        return Arrival(request.id, at, self._prompts[request.id], output, request.tenant)

    def record(self, request: Request, simulation: Simulation, stopped: str | None) -> RequestRecord:
        answer = simulation.answers.get(request.id)
        if answer is None:
            return RequestRecord(
                request.id, request.tenant, request.slo_class, request.arrival / self._scale, None, (),
                request.prompt_tokens, 0, expected_tokens(request), error="not_sent", not_sent_reason=stopped,
            )  # fmt: skip
        times, arrival = answer.times, answer.arrival
        whole = len(times) == arrival.output
        error = answer.error or (None if whole else "timeout" if stopped is None else "stopped")
        return RequestRecord(
            request.id, request.tenant, request.slo_class, arrival.at, arrival.at, tuple(times), len(arrival.prompt),
            len(times), expected_tokens(request), finish_reason="length" if error is None else None, error=error,
        )  # fmt: skip


def _watched(simulation: Simulation, load: Load, turns: _Turns, stop: Stop) -> str | None:
    """Run to the end, or until `stop`, asked as often as in a real replay, gives its reason."""
    by_id = {request.id: request for request in load.requests}
    records: list[RequestRecord] = []
    time = CHECK_SECONDS
    while simulation.run(time):
        for answer in simulation.ended[len(records) :]:
            if answer.times and answer.times[-1] > time:
                break
            records.append(turns.record(by_id[answer.arrival.name], simulation, None))
        reason = stop(Progress(time, simulation.offered(time), len(load.requests), records))
        if reason is not None:
            return reason
        time += CHECK_SECONDS
    return None


def prompt_tokens(requests: Iterable[Request], model: Path) -> dict[str, tuple[int, ...]]:
    """Token ids of each request's prompt, made as the engine makes them. Raises ValueError."""
    requests = list(requests)
    as_ids = all(request.endpoint == "completions" and not isinstance(request.prompt, str) for request in requests)
    tokenizer = None if as_ids else Tokenizer(model)
    found = {}
    for request in requests:
        prompt = request.prompt
        if tokenizer is not None and isinstance(prompt, str):
            found[request.id] = tuple(tokenizer.encode(prompt))
        elif tokenizer is not None and request.endpoint == "chat":
            found[request.id] = tuple(tokenizer.apply_chat_template([dict(m) for m in prompt if isinstance(m, dict)]))
        else:
            found[request.id] = tuple(token for token in prompt if isinstance(token, int))
    return found
