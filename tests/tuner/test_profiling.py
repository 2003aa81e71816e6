"""The profile of a study: which replays it takes, and one on the real engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search_spaces.space import ChoiceParameter, IntParameter, Parameter, SearchSpace
from tests.fakes import PATIENCE, cases
from tuner.profiling import REQUESTS, profiled_knobs, profiling_load, take_profile
from tuner.serving.config import ServingConfig
from tuner.serving.testbed import EngineSettings, Load
from tuner.simulation import Simulator, prompt_tokens
from tuner.traffic.trace import Request

MINI = Path(__file__).parents[2] / "engine" / "mini"
DTYPES = ChoiceParameter(("auto", "int8", "int4"))


def load(count: int, span: float) -> Load:
    requests = tuple(
        Request(f"r{i}", span * i / count, "t", "chat", tuple(range(3, 20 + i % 9)), 8, output_tokens=6, session="s")
        for i in range(count)
    )
    return Load(requests, span, "tune", 1.0, PATIENCE)


@pytest.mark.parametrize(
    ("space", "baseline", "expected"),
    cases(
        [
            ("nothing that changes step times: whole prompts and chunks", {"max_num_seqs": IntParameter(4, 64)}, {},
             [(None, None, 0), (None, 48, 0)]),
            ("a replay for each precision, two of them in chunks too", {"kv_cache_dtype": DTYPES}, {},
             [("auto", None, 0), ("int8", None, 0), ("int4", None, 0), ("auto", 48, 0), ("int4", 48, 0)]),
            ("guesses at full depth", {"num_speculative_tokens": IntParameter(0, 3)}, {"num_speculative_tokens": 1},
             [(None, None, 0), (None, 48, 0), (None, None, 3)]),
            ("depth by choice", {"kv_cache_dtype": DTYPES, "num_speculative_tokens": ChoiceParameter((0, 2, 4))}, {},
             [("auto", None, 0), ("int8", None, 0), ("int4", None, 0), ("auto", 48, 0), ("auto", None, 4),
              ("int4", 48, 0), ("int4", None, 4)]),
        ]
    ),
)  # fmt: skip
def test_replays_of_a_profile(space: dict[str, Parameter], baseline: dict[str, Any], expected: list[Any]) -> None:
    found = profiled_knobs(SearchSpace(space), {"max_num_seqs": 8, "max_num_batched_tokens": 256, **baseline})
    keys = ("kv_cache_dtype", "prefill_chunk_size", "num_speculative_tokens")
    assert [tuple(knobs.get(key) for key in keys) for knobs in found] == expected
    assert all(knobs["max_num_seqs"] == 64 and knobs["max_num_batched_tokens"] == 256 for knobs in found)


@pytest.mark.parametrize(("count", "span", "scale"), [(200, 60.0, 59), (480, 0.6, 1.0), (10, 20.0, 18.0 / 1.2)])
def test_requests_of_a_profile_are_drawn_evenly_and_come_quickly(count: int, span: float, scale: float) -> None:
    found = profiling_load(load(count, span))
    assert len(found.requests) == min(count, REQUESTS) and len({r.id for r in found.requests}) == len(found.requests)
    assert found.requests[-1].arrival > 0.7 * span and found.duration <= max(1.2, span / scale) + 1e-9
    assert not any(request.session for request in found.requests)


def test_a_profile_of_the_real_engine_foretells_its_steps(tmp_path: Path) -> None:
    # Two at a time take 72 steps at least, however many wait.
    config = ServingConfig("bundled", {"model": str(MINI / "mini")}, {"max_num_seqs": 2})
    offered = profiling_load(load(24, 2.0))
    settings = EngineSettings(tmp_path, launch_timeout=PATIENCE, hang_timeout=PATIENCE)
    profile = take_profile(settings, [config], offered)
    model = profile.models["mini/auto/auto"]
    assert profile.compute_dtype == "float32" and model.samples >= 30 and 0 < model.error < 0.5
    replay = Simulator(profile, prompt_tokens(offered.requests, MINI / "mini")).replay(config, offered)
    assert all(record.finish_reason == "length" and record.output_tokens == 6 for record in replay.records)
