"""Steps through static buffers and a stand-in for CUDA graphs: the tokens of a step that is launched eagerly.

The stand-in calls the captured function again, over the same buffers, as a graph would. Whatever a step may not read
holds NaN, or the largest number there is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paged import CPU, make_spans
from tiny_models import random_ids

from benchmarks.gpu_check import poisoned
from engine.config import EngineConfig
from engine.cuda_graphs import BATCH_BUCKETS, batch_buckets, table_widths
from engine.kernels.reference import PagedTensor
from engine.kernels.rotate_store import rotate_and_store
from engine.layers.attention import Span, live_pages, slots_of
from engine.layers.ragged import PageTables, RaggedShape, pack, ragged_input, ragged_layout
from engine.llm_engine import LLMEngine
from engine.model_runner import ModelRunner, load_engine
from engine.paged_model import PagedModel
from engine.sequence import SamplingParams, Sequence

# Rows that belong to no sequence are computed too, from poison or whatever memory held, and numpy remarks on it.
pytestmark = pytest.mark.filterwarnings(
    *(f"ignore:{what} encountered" for what in ("All-NaN slice", "invalid value", "overflow", "divide by zero"))
)

PROMPTS = [random_ids(13, seed=1), random_ids(3, seed=2) * 2, random_ids(1, seed=3), random_ids(21, seed=4)]
OUTPUTS = (5, 7, 3, 4)


class Recorder:
    """In place of CudaCapture. captured: graphs so far; replayed: how often any of them ran."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        run()
        self.captured += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def generate(engine: LLMEngine, arrivals: list[int] | None = None) -> list[list[int]]:
    """Greedy tokens of PROMPTS; arrivals: the step before which each comes."""
    arrivals = arrivals or [0] * len(PROMPTS)
    found: list[list[int]] = [[] for _ in PROMPTS]
    step = 0
    while step <= max(arrivals) or engine.has_work():
        for index, arrival in enumerate(arrivals):
            if arrival == step:
                engine.add(str(index), PROMPTS[index], SamplingParams(max_tokens=OUTPUTS[index], ignore_eos=True))
        for result in engine.step():
            found[int(result.request_id)] += result.tokens
        step += 1
    return found


def captured(config: EngineConfig) -> tuple[LLMEngine, Recorder]:
    recorder = Recorder()
    with poisoned():
        return LLMEngine(config, ModelRunner(config, lambda: recorder)), recorder


CASES: dict[str, dict[str, Any]] = {
    "lengths of all kinds": {},
    "prompts in chunks beside decodes": {"max_num_batched_tokens": 16},
    "a window with sinks in int8": {"kv_cache_dtype": "int8", "kv_window": 6, "block_size": 8},
    "pages that hold no tile": {"block_size": 4, "kv_cache_dtype": "int4"},
    "tables that outgrow a bucket": {"block_size": 16},
    "preemption": {"kv_cache_memory_bytes": 7 * 4 * 2 * 2 * 8 * 4, "block_size": 4},
    "verification of one guess": {"num_speculative_tokens": 1, "speculative_method": "ngram"},
    "verification of three guesses": {"num_speculative_tokens": 3, "speculative_method": "ngram"},
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_eager_steps(name: str, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "tables that outgrow a bucket":
        monkeypatch.setattr("engine.cuda_graphs.NARROWEST_TABLE", 16)
    config = EngineConfig(model=str(tiny_draft), device="cpu").updated(CASES[name])
    arrivals = [0, 0, 2, 3]  # sequences enter and leave, so that rows are another's in the next step
    wanted = generate(load_engine(config), arrivals)
    engine, recorder = captured(config.updated({"attention_backend": "triton"}))
    with poisoned():
        assert generate(engine, arrivals) == wanted
    assert recorder.replayed >= 4
    assert (engine.stats().preemptions > 0) == (name == "preemption")


def test_guesses_of_a_draft_model(tiny_draft: Path) -> None:
    config = EngineConfig(
        model=str(tiny_draft), draft_model=str(tiny_draft), device="cpu", num_speculative_tokens=2, max_num_seqs=3
    )
    wanted = generate(load_engine(config))
    engine, _ = captured(config.updated({"attention_backend": "triton"}))
    with poisoned():
        assert generate(engine) == wanted
    assert engine.stats().accepted_tokens > 0
    target, draft = (graphs_of(paged) for paged in runner_of(engine)._models)
    assert {shape.max_rows for shape in target} <= {1, 2, 3} and 3 in {shape.max_rows for shape in target}
    # It catches up with one token, or with two where all its guesses stood, and then guesses one at a time.
    assert {shape.max_rows for shape in draft} == {1, 2}


def runner_of(engine: LLMEngine) -> ModelRunner:
    assert isinstance(engine._runner, ModelRunner)
    return engine._runner


def graphs_of(paged: PagedModel) -> list[RaggedShape]:
    return [] if paged.graphs is None else list(paged.graphs._graphs)


def decode(paged: PagedModel, sequences: int, tokens: int = 3, rows: int = 1) -> None:
    paged.prepare(make_spans([(rows, tokens)] * sequences, 16, 40, {})).run()


@pytest.fixture
def engine(tiny_draft: Path) -> LLMEngine:
    config = EngineConfig(model=str(tiny_draft), device="cpu", attention_backend="triton", max_num_seqs=5)
    return LLMEngine(config, ModelRunner(config, Recorder))


def test_the_largest_is_captured_first_and_each_once(engine: LLMEngine) -> None:
    paged = runner_of(engine)._models[0]
    for sequences in (3, 4, 1, 3):
        decode(paged, sequences)
    assert [(shape.sequences, shape.width) for shape in graphs_of(paged)] == [(5, 16), (4, 16), (1, 16)]
    decode(paged, 1, tokens=300)
    assert graphs_of(paged)[-1].width == 32  # what 512 positions need


def test_what_is_not_captured(engine: LLMEngine) -> None:
    paged = runner_of(engine)._models[0]
    decode(paged, 6)  # more sequences than the largest bucket
    decode(paged, 2, rows=2)  # a prompt's chunk: there is no speculation
    assert graphs_of(paged) == []


def test_mostly_short_sequences_beside_one_with_guesses_are_not_padded(tiny_draft: Path) -> None:
    config = EngineConfig(
        model=str(tiny_draft), device="cpu", attention_backend="triton", num_speculative_tokens=3,
        speculative_method="ngram",
    )  # fmt: skip
    paged = ModelRunner(config, Recorder)._models[0]
    mostly_short, mostly_long = make_spans([(4, 9), *[(1, 9)] * 3], 16, 9, {}), make_spans([(4, 9), (1, 9)], 16, 9, {})
    paged.prepare(mostly_short)
    assert graphs_of(paged) == []
    paged.prepare(mostly_long)
    assert [(shape.sequences, shape.max_rows) for shape in graphs_of(paged)] == [(16, 4), (2, 4)]


def test_graphs_go_with_the_pages_and_come_back(engine: LLMEngine) -> None:
    for changes, largest in ({"kv_cache_dtype": "int8"}, 5), ({"max_num_seqs": 3}, 3):
        before = runner_of(engine)._models[0].graphs
        decode(runner_of(engine)._models[0], 1)
        engine.reconfigure(engine.config.updated(changes))
        paged = runner_of(engine)._models[0]
        assert paged.graphs is not before and graphs_of(paged) == []
        decode(paged, 1)
        assert graphs_of(paged)[0].sequences == largest


def test_a_refused_reconfiguration_leaves_a_runner_that_captures_anew(engine: LLMEngine) -> None:
    paged = runner_of(engine)._models[0]
    decode(paged, 1)
    with pytest.raises(ValueError, match="kv_cache_memory_bytes"):
        engine.reconfigure(engine.config.updated({"kv_cache_memory_bytes": 1}))
    assert runner_of(engine)._models[0] is paged
    decode(paged, 1)
    assert len(graphs_of(paged)) == 2


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"enforce_eager": True}, id="switched off"),
        pytest.param({"kv_window": 16, "kv_heavy_tokens": 16}, id="pages are weighed"),
        pytest.param({"attention_backend": "torch"}, id="torch"),
    ],
)
def test_no_graphs(changes: dict[str, Any], engine: LLMEngine) -> None:
    config = engine.config.updated(changes)
    assert [paged.graphs for paged in ModelRunner(config, Recorder)._models] == [None]


def test_a_cpu_captures_nothing(engine: LLMEngine) -> None:
    assert [paged.graphs for paged in ModelRunner(engine.config)._models] == [None]


def test_a_row_without_a_slot_is_stored_nowhere() -> None:
    pages = [PagedTensor.empty("int8", 2, 4, 2, 16, CPU) for _ in range(2)]
    qkv, angles = torch.ones(2, 8, 16), torch.ones(2, 1, 16)
    rotate_and_store(qkv, (angles, angles), torch.tensor([-1, 2], dtype=torch.int32), None, *pages)
    for paged in pages:
        stored = paged.data.view(8, -1).any(1).tolist()
        assert stored == [False, False, True, False, False, False, False, False]


@pytest.mark.parametrize(
    ("most", "buckets"),
    [(1, (1,)), (3, (1, 2, 3)), (16, (1, 2, 4, 8, 16)), (20, (1, 2, 4, 8, 16, 20))],
)
def test_buckets_end_with_the_most_sequences(most: int, buckets: tuple[int, ...]) -> None:
    assert batch_buckets(most) == buckets


def test_large_buckets() -> None:
    assert batch_buckets(4096)[-18:] == (248, 256, *range(272, 513, 16))
    assert batch_buckets(256) == BATCH_BUCKETS[:35]
    assert table_widths(2560, 16) == (16, 64, 256, 1024, 2560)
    assert table_widths(16, 16) == (16,)


@given(data=st.data())
def test_tables_that_are_kept_are_those_written_afresh(data: st.DataObject) -> None:
    """Over steps in which sequences grow, lose pages, leave and come back to other rows."""
    size, kept = 4, PageTables(3, 12, 4)
    sequences = [Sequence(str(i), (0,) * 8, SamplingParams(), 0) for i in range(4)]
    for _ in range(data.draw(st.integers(1, 6))):
        chosen = data.draw(st.lists(st.sampled_from(sequences), min_size=1, max_size=3, unique_by=id))
        spans = []
        for sequence in chosen:
            blocks = data.draw(st.integers(1, 12))
            evicted = data.draw(st.integers(0, blocks - 1))
            pages = data.draw(st.lists(st.integers(0, 9), min_size=blocks - evicted, max_size=blocks - evicted))
            sequence.block_table[:] = [*[None] * evicted, *pages]
            end = data.draw(st.integers(size * (blocks - 1) + 1, size * blocks))
            spans.append(Span(sequence, end - 1, [0]))
        fresh = PageTables(3, 12, size)
        width = fresh.take(spans)
        assert kept.take(spans) == width
        shape = RaggedShape(3, 5, width, 1)
        views = [ragged_input(pack(spans, shape, tables, pinned=False), shape, None, 0, []) for tables in (kept, fresh)]
        assert views[0].slots.equal(views[1].slots)
        assert (views[0].slots[len(spans) :] == -1).all()
        for row, span in enumerate(spans):
            live = live_pages(span, size)
            for batch in views:
                assert batch.ragged is not None
                count = int(batch.ragged.num_pages[row])
                found = batch.ragged.tables[row, :count].tolist(), batch.ragged.page_starts[row, :count].tolist()
                assert found == live
                assert batch.slots[row] == slots_of(span, size)[0]


def test_a_position_without_a_page_is_refused() -> None:
    (span,) = make_spans([(1, 20)], 16, 4, {})
    span.sequence.block_table[1] = None
    with pytest.raises(AssertionError, match="has no page"):
        ragged_layout([span], 16, None, 0, CPU)
