"""Heavy hitters against a dense reference that sees the same tokens at every step and evicts by its own sums."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import random_ids, write_model
from torch import Tensor
from transformers import LlamaForCausalLM

from engine.config import EngineConfig
from engine.kv_cache import BlockManager
from engine.llm_engine import LLMEngine
from engine.model_runner import load_engine
from engine.runner import Pending
from engine.scheduler import ScheduledSequence
from engine.sequence import SamplingParams, Sequence

OUTPUT = 40


@dataclass
class Step:
    """Rows [start, end) of one sequence, and the blocks of its table that had a page when they were computed."""

    start: int
    end: int
    held: set[int]


class Recorder:
    """The engine's own runner, with every step noted."""

    def __init__(self, engine: LLMEngine) -> None:
        self._runner = engine._runner
        self.asynchronous = self._runner.asynchronous
        engine._runner = self
        self.steps: defaultdict[str, list[Step]] = defaultdict(list)

    def launch(self, step: list[ScheduledSequence]) -> Pending:
        for item in step:
            held = {index for index, page in enumerate(item.sequence.block_table) if page is not None}
            self.steps[item.sequence.request_id].append(Step(item.start, item.start + item.rows, held))
        return self._runner.launch(step)


def generate(engine: LLMEngine, prompts: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        engine.add(str(index), prompt, SamplingParams(max_tokens=OUTPUT, ignore_eos=True, logprobs=True))
    while engine.has_work():
        for output in engine.step():
            tokens[int(output.request_id)] += output.tokens
            logprobs[int(output.request_id)] += output.logprobs
    assert engine.stats().blocks_free == engine.stats().blocks_total
    return tokens, logprobs


def dense(path: Path, ids: list[int], steps: list[Step], size: int) -> tuple[Tensor, Tensor]:
    """transformers' logits [N, vocab] and attention [N, N] (summed over heads and layers) when the row of each query
    sees exactly the keys whose blocks were held."""
    visible = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for step in steps:
        for q in range(step.start, step.end):
            for block in step.held:
                visible[q, block * size : (block + 1) * size] = True
    visible &= torch.ones_like(visible).tril()
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[None, None]
    with torch.inference_mode():
        out = model(torch.tensor([ids]), attention_mask=mask, use_cache=False, output_attentions=True)
    return out.logits[0], torch.stack(out.attentions).sum((0, 1, 2))


def expected_blocks(config: EngineConfig, steps: list[Step], attention: Tensor) -> list[set[int]]:
    """Blocks held in each step when the older ones with the least attention leave after each."""
    assert config.kv_window is not None
    size, held, mass = config.block_size, set[int](), defaultdict[int, float](float)
    found = []
    for step in steps:
        held |= set(range(step.start // size, math.ceil(step.end / size)))
        found.append(set(held))
        for block in held:
            mass[block] += float(attention[step.start : step.end, block * size : (block + 1) * size].sum())
        first, end = math.ceil(config.kv_sink_tokens / size), (step.end - config.kv_window + 1) // size
        old = sorted((b for b in held if first <= b < end), key=lambda block: mass[block], reverse=True)
        for block in old[config.kv_heavy_tokens // size :]:
            held.remove(block)
    return found


PROMPTS = [random_ids(70, 1), random_ids(23, 2), random_ids(110, 3)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="the whole prompt in one step"),
        pytest.param({"prefill_chunk_size": 16}, id="chunks"),
        pytest.param({"prefill_chunk_size": 5, "block_size": 2, "kv_heavy_tokens": 7}, id="small chunks and pages"),
        pytest.param({"kv_sink_tokens": 0, "kv_window": 1}, id="no sinks, no window"),
        pytest.param({"block_size": 16, "kv_heavy_tokens": 32, "prefill_chunk_size": 30}, id="window less than a page"),
        pytest.param({"max_num_seqs": 1}, id="one at a time"),
    ],
)
def test_tokens_and_evictions_equal_the_dense_reference(changes: dict[str, Any], tiny_llama: Path) -> None:
    settings = {"kv_window": 12, "kv_sink_tokens": 3, "kv_heavy_tokens": 16, "block_size": 4, **changes}
    config = EngineConfig(model=str(tiny_llama), **settings)
    engine = load_engine(config)
    recorder = Recorder(engine)
    tokens, logprobs = generate(engine, PROMPTS)
    for index, prompt in enumerate(PROMPTS):
        steps = recorder.steps[str(index)]
        ids = (prompt + tokens[index])[: steps[-1].end]
        logits, attention = dense(tiny_llama, ids, steps, config.block_size)
        chosen = logits[len(prompt) - 1 :]
        assert chosen.argmax(-1).tolist() == tokens[index]
        wanted = chosen.log_softmax(-1).gather(1, torch.tensor(tokens[index]).unsqueeze(1)).squeeze(1)
        assert torch.allclose(torch.tensor(logprobs[index]), wanted, atol=1e-4)
        assert [step.held for step in steps] == expected_blocks(config, steps, attention)
    assert engine.stats().evicted_blocks > 0


def test_they_are_not_the_plain_window(tiny_llama: Path) -> None:
    window = EngineConfig(model=str(tiny_llama), kv_window=16, block_size=4, prefill_chunk_size=16)
    heavy = window.updated({"kv_heavy_tokens": 24})
    assert generate(load_engine(window), PROMPTS)[0] != generate(load_engine(heavy), PROMPTS)[0]
    everything = load_engine(window.updated({"kv_heavy_tokens": 512}))
    assert generate(everything, PROMPTS)[0] == generate(load_engine(EngineConfig(model=str(tiny_llama))), PROMPTS)[0]
    assert everything.stats().evicted_blocks == 0


def test_pages_stay_within_sinks_window_budget_and_chunk(tiny_llama: Path) -> None:
    config = EngineConfig(
        model=str(tiny_llama), kv_window=16, kv_sink_tokens=4, kv_heavy_tokens=12, block_size=4, prefill_chunk_size=32
    )
    engine = load_engine(config)
    recorder = Recorder(engine)
    generate(engine, [random_ids(300, 4)])
    held = [len(step.held) for step in recorder.steps["0"]]
    assert max(held) <= engine._blocks.peak_blocks(340, 32)
    # One page of sinks, three heavy ones, the window over at most five, and the page being filled.
    assert max(held[-(OUTPUT - 1) :]) <= 1 + 3 + 5 + 1


@pytest.mark.parametrize("heavy", [0, 10])
@pytest.mark.parametrize("window", [1, 6, 8])
@pytest.mark.parametrize("sinks", [0, 5])
@pytest.mark.parametrize("step", [1, 3, 4, 9])
def test_peak_is_what_the_worst_alignment_holds(heavy: int, window: int, sinks: int, step: int) -> None:
    most = 0
    for first in range(1, 5):
        blocks = BlockManager(100, 4, window, sinks, heavy_tokens=heavy)
        sequence = Sequence("a", (1,) * 200, SamplingParams(), 0)
        for end in range(min(first, step), 200, step):
            blocks.extend(sequence, end)
            most = max(most, sum(page is not None for page in sequence.block_table))
            blocks.evict(sequence, end)
    assert most == blocks.peak_blocks(200, step)


def test_scores_are_those_of_generation(tiny_llama: Path) -> None:
    config = EngineConfig(model=str(tiny_llama), kv_window=16, kv_heavy_tokens=16, block_size=4)
    [tokens], [logprobs] = generate(load_engine(config), [PROMPTS[0]])
    engine = load_engine(config)
    engine.add("a", PROMPTS[0], SamplingParams(max_tokens=OUTPUT, forced=tuple(tokens), logprobs=True))
    scored: list[float] = []
    while engine.has_work():
        scored += [x for output in engine.step() for x in output.logprobs]
    assert scored == pytest.approx(logprobs, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        pytest.param({}, "kv_heavy_tokens: needs kv_window, which is not set", id="no window"),
        pytest.param({"kv_window": 8, "block_size": 32}, "16 is less than a page of 32 tokens", id="less than a page"),
        pytest.param(
            {"kv_window": 8, "num_speculative_tokens": 1, "speculative_method": "ngram"},
            "kv_heavy_tokens: cannot be combined with num_speculative_tokens", id="speculation",
        ),
        pytest.param(
            {"kv_window": 8, "enable_prefix_caching": True},
            "kv_heavy_tokens: cannot be combined with enable_prefix_caching", id="prefix caching",
        ),
    ],
)  # fmt: skip
def test_impossible_pairs_get_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        EngineConfig(model="none").updated({"kv_heavy_tokens": 16, **changes})
    assert "\n" not in str(caught.value)


def test_a_model_with_a_window_of_its_own_has_no_older_tokens(tmp_path: Path) -> None:
    model = write_model(tmp_path, "mistral", sliding_window=20)
    config = EngineConfig(model=str(model), kv_window=16)
    engine = load_engine(config)
    with pytest.raises(ValueError, match="^kv_heavy_tokens: the model's own window of 20 tokens keeps no older ones$"):
        engine.reconfigure(config.updated({"kv_heavy_tokens": 16}))
