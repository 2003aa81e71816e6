"""LiveTestbed against an engine that speaks the contract: warm reconfiguration, relaunch, probes, typed failures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import PATIENCE, cases, engine_launcher, make_probes, make_trace, write_study
from tests.tuner.clocks import clock_leaps, hangs_are_told
from tuner.errors import ConfigRejected, EngineCrashed, EngineHung, EngineOutOfMemory, LaunchError, ServingError
from tuner.scoring.probes import Probe
from tuner.serving.api import answers
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.serving.testbed import EngineSettings, LiveTestbed, Load

PROBES = tuple(Probe(**probe) for probe in make_probes())  # type: ignore[arg-type]


class Bench:
    """A testbed over the fake engine in a directory."""

    def __init__(self, directory: Path) -> None:
        write_study(directory)
        self.model = directory / "model"
        settings = EngineSettings(directory / "run", engine_launcher(), PATIENCE, PATIENCE)
        self.testbed = LiveTestbed(settings, {"machine": "fake"})

    def measure(self, probes: Any = None, stop: Any = None, time_scale: float = 2.0, **knobs: Any) -> Measurement:
        trace = make_trace().window(0, 1)
        load = Load(trace.requests, trace.span, "tune", time_scale, PATIENCE)
        return self.testbed.measure(self.config(**knobs), load, purpose="trial", probes=probes, stop=stop)

    def config(self, **knobs: Any) -> ServingConfig:
        return ServingConfig("bundled", {"model": str(self.model)}, knobs)

    def fault(self, do: str, **when: Any) -> None:
        (self.model / "faults.json").write_text(json.dumps([{"when": when, "do": do}]))

    @property
    def starts(self) -> list[int]:
        return [int(line) for line in (self.model / "starts.txt").read_text().split()]

    @property
    def changes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.model / "changes.jsonl").read_text().splitlines()]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("tuner.serving.testbed.DYING_SECONDS", PATIENCE)
    bench = Bench(tmp_path)
    with bench.testbed:
        yield bench


def test_measures_traffic_and_probes(bench: Bench) -> None:
    measured = bench.measure(PROBES, max_num_seqs=4)
    assert [record.error for record in measured.records] == [None] * 10
    assert all(len(record.token_times) == 4 for record in measured.records)
    assert measured.duration == 0.5
    assert [record.probe_id for record in measured.probes] == [probe.id for probe in PROBES]
    assert all(record.correct for record in measured.probes if record.kind == "recall")
    assert {record.logprobs for record in measured.probes if record.kind == "forced"} == {(-1.0, -2.0)}
    assert measured.engine_metrics["generation_tokens"] == 40
    assert measured.seconds.keys() == {"reconfigure", "replay", "quality"}
    assert measured.environment == {"machine": "fake"}
    assert not measured.warm


def test_the_engine_stays_warm_where_the_knob_allows(bench: Bench) -> None:
    first = bench.measure(max_num_seqs=4)
    assert bench.measure(max_num_seqs=8).warm
    assert bench.measure(max_num_seqs=8).warm
    assert not first.warm and len(bench.starts) == 1
    assert bench.changes == [{"max_num_seqs": 8}]


def test_every_replay_begins_with_an_empty_prefix_cache(bench: Bench) -> None:
    bench.measure(max_num_seqs=4)
    assert not (bench.model / "resets.txt").exists()
    before = bench.measure(enable_prefix_caching=True).engine_metrics["generation_tokens"]
    bench.measure(enable_prefix_caching=True)
    first, second = map(int, (bench.model / "resets.txt").read_text().split())
    # After the warm-up of two requests of four tokens each, and nothing between that and the replay.
    assert (before, second - first) == (40, 40 + 8)


def test_a_knob_that_needs_a_process_gets_one(bench: Bench) -> None:
    bench.measure(max_num_seqs=4)
    assert not bench.measure(num_threads=2).warm
    assert len(bench.starts) == 2


def test_a_stopped_replay_keeps_the_duration_of_its_window(bench: Bench) -> None:
    measured = bench.measure(stop=lambda progress: "enough", time_scale=1 / 3600)
    assert measured.stopped == "enough"
    assert measured.duration == 3600
    assert [record.error for record in measured.records[1:]] == ["not_sent"] * 9


FAILURES = [
    ("bad configuration", "refuse", ConfigRejected, "cannot start: refuse"),
    ("out of memory at the start", "oom", EngineOutOfMemory, "cannot start: oom"),
    ("never listens", "silent", LaunchError, "not listening after 900 s"),
    ("dies under load", "crash", EngineCrashed, "dying of crash"),
    ("out of memory under load", "oom_later", EngineOutOfMemory, "dying of oom_later"),
    ("stands still", "hang", EngineHung, "no token and no finished request for 1 s"),
]


@pytest.mark.parametrize(("fault", "error", "detail"), cases(FAILURES))
def test_failures_are_typed_and_the_next_configuration_gets_a_fresh_process(
    bench: Bench, fault: str, error: type[ServingError], detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs_are_told(monkeypatch, bench.model, seconds=1.0)
    if fault == "silent":
        clock_leaps(monkeypatch, bench.model / "starts.txt")
    bench.fault(fault, max_num_seqs=3)
    with pytest.raises(error, match=detail):
        bench.measure(max_num_seqs=3)
    assert [record.error for record in bench.measure(max_num_seqs=4).records] == [None] * 10
    assert len(bench.starts) == 2


def test_a_refused_reconfiguration_is_the_configurations_fault(bench: Bench) -> None:
    bench.fault("reject", max_num_seqs=3)
    bench.measure(max_num_seqs=4)
    with pytest.raises(ConfigRejected, match="the pool cannot hold one sequence"):
        bench.measure(max_num_seqs=3)


def test_an_invalid_configuration_reaches_no_engine(bench: Bench) -> None:
    with pytest.raises(ConfigRejected, match="max_num_seqs"):
        bench.measure(max_num_seqs=0)
    assert not (bench.model / "starts.txt").exists()


ANSWERS = [
    ("exact", "4711", "4711", True),
    ("blanks around it", "  4711\n", "4711", True),
    ("goes on talking", "4711. And", "4711", True),
    ("a longer word", "47112", "4711", False),
    ("another word", "4712", "4711", False),
    ("nothing", "", "4711", False),
]


@pytest.mark.parametrize(("text", "target", "right"), cases(ANSWERS))
def test_a_recall_answer_is_compared_as_a_whole_word(text: str, target: str, right: bool) -> None:
    assert answers(text, target) is right
