"""Prompt lookup: against a scan of the whole sequence, and through the engine, where it must change no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_llm_engine import GREEDY, prompts, run

from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.sequence import SamplingParams
from engine.speculative.ngram import NgramIndex

REPETITIVE = [[*range(20, 29)] * 6, [40, 41, 42] * 9 + [50, 40, 41]]


def by_scanning(tokens: list[int], shortest: int, longest: int, count: int) -> list[int]:
    for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for start in range(len(tokens) - length - 1, -1, -1):
            if tokens[start : start + length] == tokens[-length:]:
                grown = list(tokens)
                for _ in range(count):
                    grown.append(grown[start + length])
                    start += 1
                return grown[len(tokens) :]
    return []


@given(
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    shortest=st.integers(1, 3),
    more=st.integers(0, 3),
    count=st.integers(0, 6),
)
def test_the_index_finds_what_a_scan_finds(
    tokens: list[int], cuts: list[int], shortest: int, more: int, count: int
) -> None:
    """The longest n-gram first, of equal ones the latest, whatever the pieces in which the sequence grew."""
    index = NgramIndex(shortest, shortest + more)
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 40], strict=True):
        index.extend(tokens[start:end])
    assert len(index) == len(tokens)
    assert index.continuation(count) == by_scanning(tokens, shortest, shortest + more, count)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"num_speculative_tokens": 1}, id="depth 1"),
        pytest.param({"num_speculative_tokens": 6, "prompt_lookup_min": 1}, id="depth 6, single tokens"),
        pytest.param({"num_speculative_tokens": 4, "prefill_chunk_size": 7, "max_num_batched_tokens": 24}, id="chunks"),
        pytest.param(
            {"num_speculative_tokens": 4, "kv_cache_memory_bytes": 10 * 16 * 2 * 2 * 2 * 16 * 4}, id="preempted"
        ),
        pytest.param({"num_speculative_tokens": 3, "kv_window": 512}, id="a window longer than everything"),
    ],
)
def test_lookup_changes_no_token(settings: dict[str, Any], tiny_llama: Path) -> None:
    requests = prompts() + REPETITIVE
    plain = load_engine(EngineConfig(model=str(tiny_llama)))
    engine = load_engine(EngineConfig(model=str(tiny_llama), speculative_method="ngram", **settings))
    assert run(engine, GREEDY, requests) == run(plain, GREEDY, requests)
    stats = engine.stats()
    assert stats.draft_tokens > 0
    if "kv_cache_memory_bytes" in settings:
        assert stats.preemptions > 0


def test_a_copying_model_accepts_what_is_looked_up(tiny_llama: Path) -> None:
    """Bias makes the target repeat one token for ever, which prompt lookup must see after the second time."""
    engine = load_engine(EngineConfig(model=str(tiny_llama), speculative_method="ngram", num_speculative_tokens=4))
    params = SamplingParams(max_tokens=40, ignore_eos=True, logit_bias=((9, 100.0),))
    assert run(engine, params, [prompts()[0]]) == [[9] * 40]
    stats = engine.stats()
    assert stats.accepted_tokens == stats.draft_tokens >= 28
    assert stats.steps <= 13


def test_lookup_takes_no_pages_for_a_draft(tiny_llama: Path, tiny_draft: Path) -> None:
    pages = {
        method: load_engine(
            EngineConfig(
                model=str(tiny_llama), draft_model=str(tiny_draft), speculative_method=method, num_speculative_tokens=2
            )
        ).stats().blocks_total
        for method in ("ngram", "draft_model")
    }  # fmt: skip
    plain = load_engine(EngineConfig(model=str(tiny_llama))).stats().blocks_total
    assert pages["ngram"] == plain > pages["draft_model"]
