"""Stand-ins behind the seams, shared by the tests of several rooms."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tuner.scoring.probes import SCREEN, Probe, ProbeRecord
from tuner.scoring.speculation import DomainSpeculation
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement, Purpose
from tuner.serving.testbed import Hopeless, Load, never
from tuner.spec import StudySpec, parse_spec
from tuner.traffic.replay import Progress, Stop
from tuner.traffic.trace import Request, RequestRecord, Trace
from tuner.traffic.trace_file import save_trace

TICK = 0.25
PATIENCE = 900.0
"""Seconds that no test waits for: the limit of whatever ends by itself, however slow the machine."""


def cases(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Table rows whose first cell says the case in words, as pytest parameters."""
    return [pytest.param(*row[1:], id=row[0]) for row in rows]


@dataclass
class Call:
    """One call of the testbed."""

    purpose: str
    config: ServingConfig
    window: str = ""
    time_scale: float = 0.0
    probes: int = 0


@dataclass
class FakeTestbed:
    """A server in closed form: one queue whose pace grows with max_num_seqs up to 16 and is slower per token beyond.

    int8 serves 1.5 times as fast and costs 0.001 nats; so do weights of int8 (0.002) and int4 (0.1). The checkpoint
    `small` serves three times as fast (0.003); prompts cut to 64 tokens cost 0.05. A kv_window serves twice as fast and
    forgets recall probes when it is below 128. `fault` may raise for a configuration and purpose; `slowness` is how
    many times as long the machine takes for a request of the nth call (from 1).
    """

    fault: Callable[[ServingConfig, str], Exception | None] = lambda config, purpose: None
    slowness: Callable[[int], float] = lambda call: 1.0
    calls: list[Call] = field(default_factory=list)
    closed: bool = False

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
        self.calls.append(Call(purpose, config, load.window, load.time_scale, len(probes or ())))
        if (error := self.fault(config, purpose)) is not None:
            raise error
        records, stopped = _replay(config, load, stop, self.slowness(len(self.calls)))
        return Measurement(
            config=config,
            purpose=purpose,
            window=load.window,
            time_scale=load.time_scale,
            duration=load.duration,
            records=records,
            probes=() if stopped else _gated(config, probes or (), hopeless),
            environment={"machine": "fake"},
            seconds={"reconfigure": 0.1, "replay": load.duration, "quality": 0.2},
            stopped=stopped,
        )

    def answer(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[ProbeRecord, ...]:
        self.calls.append(Call("reference", config, probes=len(probes)))
        if (error := self.fault(config, "reference")) is not None:
            raise error
        return _answers(config, probes)

    def speculation(self, config: ServingConfig, probes: Sequence[Probe]) -> tuple[DomainSpeculation, ...]:
        self.calls.append(Call("speculation", config))
        if (error := self.fault(config, "speculation")) is not None:
            raise error
        return (DomainSpeculation("text", 3, 3, 0, 2, 40, 30, 0.002, 0.001),)

    def close(self) -> None:
        self.closed = True


def _replay(
    config: ServingConfig, load: Load, stop: Stop | None, slowness: float
) -> tuple[tuple[RequestRecord, ...], str | None]:
    values = config.values
    seqs = int(values.get("max_num_seqs", 16))
    pace = 0.6 * min(seqs, 16) * (1.5 if values.get("kv_cache_dtype") == "int8" else 1.0)
    pace *= 2.0 if values.get("kv_window") else 1.0
    pace *= 1.5 if values.get("weight_dtype", "auto") != "auto" else 1.0
    pace *= 3.0 if Path(values["model"]).name == "small" else 1.0
    per_token = 0.004 + 0.0008 * seqs
    records: list[RequestRecord] = []
    free = 0.0
    for request in load.requests:
        due = request.arrival / load.time_scale
        free = max(free, due) + slowness / pace
        tokens = request.output_tokens or request.max_tokens
        times = tuple(free + per_token * i for i in range(tokens))
        records.append(_record(request, due, times))
    if stop is None:
        return tuple(records), None
    return _stopped(records, load, stop)


def _stopped(records: list[RequestRecord], load: Load, stop: Stop) -> tuple[tuple[RequestRecord, ...], str | None]:
    """Asks `stop` at every tick, as the replay does."""
    ended = sorted(records, key=lambda record: record.token_times[-1])
    for tick in range(1, int(load.duration / TICK) + 1):
        now = tick * TICK
        seen = [record for record in ended if record.token_times[-1] <= now]
        offered = sum(record.scheduled <= now for record in records)
        if (reason := stop(Progress(now, offered, len(records), seen))) is not None:
            return tuple(_cut(record, now) for record in records), reason
    return tuple(records), None


def _cut(record: RequestRecord, now: float) -> RequestRecord:
    if record.token_times[-1] <= now:
        return record
    kept = tuple(time for time in record.token_times if time <= now)
    error = "stopped" if record.scheduled <= now else "not_sent"
    return RequestRecord(
        record.request_id, record.tenant, record.slo_class, record.scheduled,
        record.sent if error == "stopped" else None, kept, record.prompt_tokens, len(kept), record.expected_tokens,
        None, error,
    )  # fmt: skip


def _record(request: Request, due: float, times: tuple[float, ...]) -> RequestRecord:
    count = len(times)
    return RequestRecord(
        request.id, request.tenant, request.slo_class, due, due, times, request.prompt_tokens, count,
        request.output_tokens, "length",
    )  # fmt: skip


def _gated(config: ServingConfig, probes: Sequence[Probe], hopeless: Hopeless) -> tuple[ProbeRecord, ...]:
    first = _answers(config, [probe for probe in probes if probe.gate == SCREEN])
    if first and hopeless(first):
        return first
    return first + _answers(config, [probe for probe in probes if probe.gate > SCREEN])


def _answers(config: ServingConfig, probes: Sequence[Probe]) -> tuple[ProbeRecord, ...]:
    loss = 0.001 if config.values.get("kv_cache_dtype") == "int8" else 0.0
    loss += {"int8": 0.002, "int4": 0.1}.get(str(config.values.get("weight_dtype")), 0.0)
    loss += 0.003 if Path(config.values["model"]).name == "small" else 0.0
    loss += 0.05 if config.values.get("max_model_len") == 64 else 0.0
    window = config.values.get("kv_window")
    records = []
    for probe in probes:
        index = int(probe.id.rsplit("-")[-1].removeprefix("r"))
        if probe.kind == "recall":
            right = window is None or window >= 128
            records.append(ProbeRecord(probe.id, probe.slice, probe.kind, correct=right, gate=probe.gate))
        else:
            logprobs = tuple(-1.0 - 0.01 * index - loss for _ in range(4))
            tokens = (1, 2, 3, 4)
            records.append(ProbeRecord(probe.id, probe.slice, probe.kind, tokens, logprobs, tokens, gate=probe.gate))
    return tuple(records)


def write_study(directory: Path, **changes: Any) -> dict[str, Any]:
    """Model directory, trace and probes under `directory`; returns the values of a study file over them."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("model", "draft"):
        (directory / name).mkdir(exist_ok=True)
        (directory / name / "config.json").write_text(json.dumps({"vocab_size": 100, "max_position_embeddings": 512}))
        (directory / name / "model.safetensors").write_bytes(name.encode())
    save_trace(make_trace(), directory / "trace.jsonl")
    (directory / "probes.jsonl").write_text("".join(json.dumps(probe) + "\n" for probe in make_probes()))
    values: dict[str, Any] = {
        "name": "fake",
        "model": "model",
        "engine": {"settings": {"kv_cache_memory_bytes": 1_000_000}},
        "traffic": {
            "trace": "trace.jsonl", "tune_window": [0, 4], "holdout_window": [4, 8], "time_scale": 4.0,
            "drain_timeout": 2.0,
        },
        "slos": {"chat": {"ttft": 0.4, "tpot": 0.05, "attainment": 0.9}},
        "quality": {"probes": "probes.jsonl"},
        "search_space": {
            "parameters": {
                "max_num_seqs": {"type": "int", "low": 1, "high": 64, "log": True},
                "kv_cache_dtype": {"type": "choice", "choices": ["auto", "int8"]},
                "kv_window": {"type": "choice", "choices": [None, 64, 256]},
                "kv_sink_tokens": {"type": "int", "low": 0, "high": 8, "step": 4, "when": {"kv_window": "not_null"}},
            }
        },
        "tail": {"slo_class": "chat", "metric": "ttft", "percentile": 95},
        "budget": {"trials": 12, "startup_trials": 4, "finalists": 1, "examine": False, "sentinel": 0},
    }  # fmt: skip
    return values | changes


def make_spec(directory: Path, **changes: Any) -> StudySpec:
    """A study over `write_study`."""
    return parse_spec(write_study(directory, **changes), source="study.yaml", base=directory)


def make_trace() -> Trace:
    """80 requests over 8 s, one every 0.1 s, each of four tokens."""
    requests = tuple(
        Request(f"r{i}", i * 0.1, "acme", "chat", f"prompt {i}", 4, prompt_tokens=2, output_tokens=4) for i in range(80)
    )
    return Trace(requests, {"source": "made for a test"}, seconds=8.0)


def make_probes() -> list[dict[str, str]]:
    """Six forced probes in slice text, forty recall probes in slice recall."""
    kinds = [("text", "forced", 6), ("recall", "recall", 40)]
    return [
        {"id": f"{name}-{i}", "slice": name, "kind": kind, "prompt": f"question {i}", "target": f"w{i}"}
        for name, kind, count in kinds
        for i in range(count)
    ]


def engine_launcher() -> tuple[str, ...]:
    """The engine that speaks the contract and computes nothing."""
    return (sys.executable, str(Path(__file__).with_name("fake_engine_server.py")))
