"""Guard rails: what the exports offer and do not switch on, with values that follow from what was held."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.config import EngineConfig
from tests.fakes import FakeTestbed, cases, make_spec
from tests.tuner.test_deploy_files import FALLBACK, SPECULATIVE, _arguments, _export
from tests.tuner.test_study import Log
from tuner.deliver import export_to
from tuner.recommend import recommend
from tuner.results import load_results
from tuner.serving.export.files import ENGINES
from tuner.serving.export.guard_rails import Held, guard_rails
from tuner.store import Store
from tuner.study import run_study

HELD = Held(rate=12.9, patience=("docs", 2.0), least_acceptance=0.5555)


def switched_on(text: str) -> str:
    """As an operator would: without the # of each line that has no blank after it."""
    return re.sub(r"(?m)^( *)#(?=[a-z])", r"\1", text)


@pytest.mark.parametrize(
    ("settings", "held", "expected"),
    cases([
        ("what waits beyond 12.9 a second times 2 s is late", {}, HELD, [{"max_queued_requests": 25}]),
        ("one may always wait", {}, Held(0.1, ("docs", 2.0)), [{"max_queued_requests": 1}]),
        ("no bound on the first token, no cap", {}, Held(12.9), []),
        ("a cap that was measured stays", {"max_queued_requests": 3}, HELD, []),
        ("guesses may fail", {"speculative_method": "ngram", "num_speculative_tokens": 2}, HELD,
         [{"max_queued_requests": 25}, {"speculation_adaptive": True, "speculation_min_acceptance": 0.56}]),
        ("a fallback that was measured stays", {"speculative_method": "ngram", "num_speculative_tokens": 2,
         "speculation_adaptive": True, "speculation_min_acceptance": 0.3}, HELD, [{"max_queued_requests": 25}]),
    ]),
)  # fmt: skip
def test_what_follows_from_what_was_held(settings: dict[str, Any], held: Held, expected: list[dict[str, Any]]) -> None:
    assert [dict(rail.changes) for rail in guard_rails(EngineConfig(model="m", **settings), held)] == expected


@pytest.mark.parametrize("target", ENGINES)
def test_an_export_sets_what_was_measured_and_no_guard_rail(tmp_path: Path, target: str) -> None:
    (without,), (with_them,) = (
        _export(target, tmp_path / name, held=held, **SPECULATIVE) for name, held in (("a", None), ("b", HELD))
    )
    if target == "llamacpp":
        plain, railed = _arguments(without), _arguments(with_them)
        assert [word.replace("/b/", "/a/") for word in railed] == plain
    else:
        plain_, railed_ = (yaml.safe_load(path.read_text().replace("/b/", "/a/")) for path in (without, with_them))
        assert railed_ == plain_
    text = with_them.read_text()
    assert "Guard rails: not measured, hence not switched on." in text and "Guard rails" not in without.read_text()
    assert "the last of 25 that wait gets its turn after 2 s, all that class docs allows" in text


@pytest.mark.parametrize(
    ("target", "expected"),
    cases([
        ("vLLM counts the 8 that run, too", "vllm", {"max-num-queued-reqs": 33}),
        ("SGLang caps its queue", "sglang", {"max-queued-requests": 25}),
        ("TensorRT-LLM ends guessing", "tensorrt-llm", {
            "acceptance_rate_window_size": 1000, "acceptance_rate_threshold": 0.56}),
    ]),
)  # fmt: skip
def test_without_its_mark_a_line_takes_effect(tmp_path: Path, target: str, expected: dict[str, Any]) -> None:
    (path,) = _export(target, tmp_path, held=HELD, **SPECULATIVE)
    before, after = yaml.safe_load(path.read_text()), yaml.safe_load(switched_on(path.read_text()))
    if target == "tensorrt-llm":
        assert {**before, "speculative_config": before["speculative_config"] | expected} == after
    else:
        assert before | expected == after


@pytest.mark.parametrize("target", ["tensorrt-llm", "llamacpp"])
def test_an_engine_without_a_cap_says_what_a_gateway_may_admit(tmp_path: Path, target: str) -> None:
    (path,) = _export(target, tmp_path, held=HELD)
    assert "# max_queued_requests -> no flag: none. No queue cap: let a gateway admit 33 requests" in path.read_text()


def test_a_window_that_is_dropped_shrinks_the_cap_with_the_batch(tmp_path: Path) -> None:
    """4 sequences of full length fit the pool where 8 ran with the window."""
    (path,) = _export("vllm", tmp_path, kv_window=124, kv_cache_memory_bytes=2**20, max_queued_requests=10)
    assert yaml.safe_load(path.read_text())["max-num-queued-reqs"] == 14


def test_sglang_is_not_told_to_adapt_what_it_would_not(tmp_path: Path) -> None:
    """adaptive_unsupported_reason of sglang 0.5.20: "only EAGLE/EAGLE3 are supported"; the flag is taken back."""
    (path,) = _export("sglang", tmp_path, **FALLBACK)
    assert "speculative-adaptive" not in yaml.safe_load(path.read_text())
    assert "# speculation_adaptive -> no flag: none. " in path.read_text()


def test_an_exported_study_offers_the_cap_of_its_most_patient_class(tmp_path: Path) -> None:
    space = {"parameters": {"max_num_seqs": {"type": "int", "low": 1, "high": 64}}}
    slos = {"chat": {"ttft": 30.0, "attainment": 0.5}, "docs": {"ttft": 20.0, "attainment": 0.5}}
    spec = make_spec(tmp_path, budget={"trials": 1, "finalists": 0}, slos=slos, search_space=space)
    with Store(tmp_path / "study.db") as store:
        run_study(spec, store, FakeTestbed(), Log(), {}, False)
        results = load_results(store, "fake")
    found = recommend(results)
    assert found.trial is not None and found.trial.traffic is not None
    (path, _) = export_to("engine", results, found, tmp_path / "out")
    (line,) = [line for line in path.read_text().splitlines() if line.startswith("# max_queued_requests: ")]
    rate = float(re.search(r"Queue cap\. ([\d.]+) requests/s", line)[1])  # type: ignore[index]
    cap = int(line.removeprefix("# max_queued_requests: ").split(".")[0])
    assert cap == pytest.approx(rate * 30.0, rel=0.01) and "class chat" in line
