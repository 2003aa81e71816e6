"""The script that records the demo trace, against the fake server: what it offers is what the trace holds."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tuner.traffic.trace import Request

SCRIPT = Path(__file__).parents[3] / "examples" / "record_demo_trace.py"


@pytest.fixture(scope="module")
def demo() -> ModuleType:
    specification = importlib.util.spec_from_file_location("record_demo_trace", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


def plan(demo: ModuleType, **changes: Any) -> Any:
    values = {
        "chat_rate": 2.5,
        "docs_rate": 1.0,
        "seconds": 20.0,
        "seed": 0,
        "shifted_share": 0.2,
        "force_lengths": False,
    }
    return demo.Plan(**{**values, **changes})


def text(request: Request) -> str:
    (message,) = request.prompt
    assert isinstance(message, dict)
    return message["content"]


@pytest.mark.parametrize("seed", range(5))
def test_windows_hold_bursts_and_share_no_prompt(demo: ModuleType, seed: int) -> None:
    requests = demo.schedule(plan(demo, seed=seed))
    assert requests[0].arrival == 0.0
    windows = [[r for r in requests if start <= r.arrival < start + 20] for start in (0, 20)]
    assert sum(map(len, windows)) == len(requests)
    for window in windows:
        docs = [r.arrival for r in window if r.tenant == "docs"]
        chat = [r for r in window if r.tenant == "chat"]
        gaps = [later - earlier for earlier, later in pairwise(docs)]
        assert sum(gap < 0.5 for gap in gaps) >= 6, "documents come in bursts"
        assert max(gaps) > 1.0, "and the bursts lie apart"
        assert 25 <= len(chat) <= 80
        assert {r.slo_class for r in chat} == {"chat"}
        assert all(32 <= r.max_tokens <= 96 for r in chat)
    first, second = ({text(r) for r in window} for window in windows)
    assert not first & second


def test_same_seed_same_schedule(demo: ModuleType) -> None:
    assert demo.schedule(plan(demo, seed=3)) == demo.schedule(plan(demo, seed=3))
    assert demo.schedule(plan(demo, seed=3)) != demo.schedule(plan(demo, seed=4))


async def test_trace_holds_what_was_offered(demo: ModuleType, server: Any) -> None:
    wanted = plan(demo, seconds=1.0, chat_rate=10.0, docs_rate=5.0)
    trace = await demo.make_trace(wanted, server.url, "fake")
    offered = demo.schedule(wanted)
    assert sorted((text(r), r.tenant, r.max_tokens) for r in trace.requests) == sorted(
        (text(r), r.tenant, r.max_tokens) for r in offered
    )
    assert trace.span == 2.0
    assert all(r.output_tokens is not None and r.reference for r in trace.requests)
    assert set(trace.provenance["windows"]) == {"tune", "holdout"}
    assert {name.split()[-1] for name in demo.summary(trace, 1.0)} == {"chat", "docs"}


async def test_forced_lengths_are_the_drawn_ones(demo: ModuleType, server: Any) -> None:
    trace = await demo.make_trace(plan(demo, seconds=0.5, chat_rate=8.0, force_lengths=True), server.url, "fake")
    assert all(r.output_tokens == r.max_tokens for r in trace.requests)


async def test_a_failed_request_fails_the_recording(demo: ModuleType, server: Any, script: Any) -> None:
    server.script = lambda body: script(status=500 if len(server.seen) > 3 else 200)
    with pytest.raises(RuntimeError, match="http_5xx"):
        await demo.make_trace(plan(demo, seconds=0.5, chat_rate=8.0), server.url, "fake")
