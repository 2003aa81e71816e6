"""What cannot fit is refused by arithmetic: no engine is asked, and no trial is spent on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeTestbed, cases
from tests.tuner.builders import checkpoint
from tests.tuner.test_study import Log, small
from tuner.environment import device_bytes
from tuner.errors import DoesNotFit
from tuner.results import load_results
from tuner.serving.adapters import check_fits
from tuner.serving.config import ServingConfig
from tuner.store import Store
from tuner.study import run_study

MIB, GIB = 2**20, 2**30
MACHINE = {"memory_bytes": GIB, "gpus": []}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "study.db") as store:
        yield store


def studied(directory: Path, store: Store, pools: list[int], log: Log) -> FakeTestbed:
    space = {
        "parameters": {
            "kv_cache_memory_bytes": {"type": "choice", "choices": pools},
            "max_num_seqs": {"type": "int", "low": 4, "high": 16},
        }
    }
    engine = {"settings": {}, "baseline": {"kv_cache_memory_bytes": pools[0]}}
    spec = small(directory, trials=6, search_space=space, engine=engine)
    checkpoint(spec.model)
    testbed = FakeTestbed()
    run_study(spec, store, testbed, log, MACHINE, resume=False)
    return testbed


def test_what_does_not_fit_costs_no_trial(tmp_path: Path, store: Store) -> None:
    log = Log()
    testbed = studied(tmp_path, store, [64 * MIB, 4 * GIB], log)
    pools = {call.config.knobs["kv_cache_memory_bytes"] for call in testbed.calls if call.config.knobs}
    assert pools == {64 * MIB}
    results = load_results(store, "fake")
    assert len(results.trials) == 7 and all(trial.state != "failed" for trial in results.trials)
    assert any("they do not fit in memory" in note for note in log.notes)


def test_where_nothing_fits_trials_fail_with_their_reason_and_no_engine_is_asked(tmp_path: Path, store: Store) -> None:
    testbed = studied(tmp_path, store, [4 * GIB, 8 * GIB], Log())
    assert [call.purpose for call in testbed.calls] == ["reference"]
    trials = load_results(store, "fake").trials
    assert {trial.reason for trial in trials} == {"does_not_fit"}
    assert trials[1].detail is not None and "there are 1073741824" in trials[1].detail


@pytest.mark.parametrize(
    ("settings", "host", "gpu", "fits"),
    cases(
        [
            ("a pool that the host holds", {}, GIB, None, True),
            ("a pool that it does not", {"kv_cache_memory_bytes": 2 * GIB}, GIB, None, False),
            ("on a GPU its memory counts", {"kv_cache_memory_bytes": 2 * GIB}, GIB, 4 * GIB, True),
            ("and not the host's", {"kv_cache_memory_bytes": 2 * GIB}, 4 * GIB, GIB, False),
            ("unless the engine runs on the CPU", {"kv_cache_memory_bytes": 2 * GIB, "device": "cpu"}, GIB, 4 * GIB,
             False),
            ("a pool without a page", {"kv_cache_memory_bytes": 1}, None, None, False),
            ("memory that is not known", {"kv_cache_memory_bytes": 1 << 50}, None, None, True),
        ]
    ),
)  # fmt: skip
def test_arithmetic(tmp_path: Path, settings: dict[str, Any], host: int | None, gpu: int | None, fits: bool) -> None:
    config = ServingConfig("bundled", {"model": str(checkpoint(tmp_path)), **settings})
    if fits:
        check_fits(config, host, gpu)
        return
    with pytest.raises(DoesNotFit):
        check_fits(config, host, gpu)


def test_a_checkpoint_that_the_planner_cannot_read_is_the_engines_to_judge(tmp_path: Path) -> None:
    check_fits(ServingConfig("bundled", {"model": str(tmp_path)}), 1, None)


def test_memory_of_a_machine() -> None:
    gpus = ["NVIDIA H200, 575.1, 143771 MiB", "NVIDIA L4, 575.1, 23034 MiB"]
    assert device_bytes({"memory_bytes": 5, "gpus": gpus}) == (5, 143771 * MIB)
    assert device_bytes({"memory_bytes": 5, "gpus": ["NVIDIA GB10, 580.1, [N/A]"]}) == (None, None)
    assert device_bytes({"memory_bytes": 5, "gpus": []}) == (5, None)
    assert device_bytes({}) == (None, None)
