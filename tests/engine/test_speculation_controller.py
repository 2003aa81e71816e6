"""The controller against known costs and acceptances: it must find the depth that arithmetic finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from test_scheduler import CountingRunner

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.metrics import Metrics
from engine.runner import Computed, RowResult
from engine.scheduler import ScheduledSequence
from engine.sequence import EngineStats, SamplingParams
from engine.speculative import controller
from engine.speculative.controller import SpeculationController

MOST = 6


@dataclass
class World:
    """A batch whose truth is known. accept: chance of each guess given that those before it stood.

    seconds: of a step by depth.
    """

    accept: float
    seconds: Callable[[int], float]
    batch: int = 8

    def rate(self, depth: int) -> float:
        """Tokens a second (Leviathan et al. 2023, equation 1, over the step's time)."""
        return sum(self.accept**i for i in range(depth + 1)) / self.seconds(depth)

    @property
    def best(self) -> int:
        return max(range(MOST + 1), key=self.rate)

    def run(self, control: SpeculationController, steps: int, seed: int = 0) -> list[int]:
        """The depths chosen."""
        chance = torch.Generator().manual_seed(seed)
        depths = []
        for _ in range(steps):
            depth = control.depth(self.batch)
            stood = (torch.rand(self.batch, MOST, generator=chance) < self.accept).long().cumprod(1)[:, :depth].sum(1)
            outcomes = [(depth, int(n)) for n in stood] if depth else []
            control.observe(self.batch, depth, outcomes, self.seconds(depth))
            depths.append(depth)
        return depths


def most_common(depths: list[int]) -> int:
    return max(set(depths), key=depths.count)


@pytest.mark.parametrize(
    "world",
    [
        pytest.param(World(0.9, lambda d: 1 + 0.05 * d), id="good draft, cheap: as deep as allowed"),
        pytest.param(World(0.7, lambda d: 1 + 0.3 * d), id="fair draft, dear: in between"),
        pytest.param(World(0.5, lambda d: 1 + 0.2 * d), id="half stand"),
        pytest.param(World(0.3, lambda d: 1 + 0.5 * d), id="poor draft: not at all"),
        pytest.param(World(0.8, lambda d: 1 + 0.05 * d + (2 if d > 3 else 0)), id="a cliff behind depth 3"),
        pytest.param(World(0.95, lambda d: 1 + 1.2 * d), id="every guess costs more than a step"),
    ],
)
@pytest.mark.parametrize("batch", [1, 8, 40])
def test_the_best_depth_is_found(world: World, batch: int) -> None:
    world.batch = batch
    depths = world.run(SpeculationController(MOST, 0.0), 1500)[500:]
    assert world.rate(most_common(depths)) >= 0.95 * world.rate(world.best)
    # What probing costs is bounded, too.
    spent = sum(world.seconds(depth) for depth in depths)
    made = sum(world.rate(depth) * world.seconds(depth) for depth in depths)
    assert made / spent >= 0.94 * world.rate(world.best)


def test_each_batch_size_has_its_depth() -> None:
    """Verification is free while weights are read, and dear once the batch is large: the sign flips."""
    alone, crowd = World(0.8, lambda d: 1 + 0.05 * d, batch=1), World(0.8, lambda d: 4 + 4 * d, batch=64)
    control = SpeculationController(MOST, 0.0)
    for _ in range(40):
        small, large = alone.run(control, 10), crowd.run(control, 10)
    assert most_common(small) == alone.best == MOST
    assert most_common(large) == crowd.best == 0
    assert control.fallbacks == 1


@pytest.mark.parametrize("batch", [1, 16])
def test_a_loss_of_acceptance_is_noticed_and_its_return_too(batch: int) -> None:
    cost = lambda d: 1 + 0.25 * d  # noqa: E731
    good, bad = World(0.9, cost, batch), World(0.05, cost, batch)
    control = SpeculationController(MOST, 0.0)
    assert most_common(good.run(control, 200)) >= 3
    assert most_common(bad.run(control, 300, seed=1)[100:]) == 0
    assert control.fallbacks >= 1
    assert most_common(good.run(control, 500, seed=2)[300:]) >= 3


def test_below_the_least_acceptance_nothing_is_guessed_even_where_it_pays() -> None:
    free = World(0.3, lambda d: 1 + 0.01 * d)
    assert most_common(free.run(SpeculationController(MOST, 0.0), 400)[100:]) > 0
    assert most_common(free.run(SpeculationController(MOST, 0.5), 400)[100:]) == 0


def test_after_falling_back_it_tries_again_after_the_stated_steps() -> None:
    useless = World(0.0, lambda d: 1 + d)
    depths = useless.run(SpeculationController(MOST, 0.0), 400)[50:]
    probes = [i for i, depth in enumerate(depths) if depth]
    assert {depths[i] for i in probes} == {1}
    starts = [i for i in probes if i - 1 not in probes]
    period = controller.PROBE_INTERVAL + controller.PROBE_STEPS
    assert {b - a for a, b in zip(starts, starts[1:], strict=False)} == {period}


def test_a_probe_waits_for_steps_that_are_timed_but_not_for_ever() -> None:
    """Steps in which the draft's cache catches up with long prompts say nothing; they must not use the probe up."""
    control = SpeculationController(MOST, 0.0)
    World(0.0, lambda d: 1 + d).run(control, 50)
    while not (depth := control.depth(8)):
        control.observe(8, 0, [], 1.0)
    catching_up = 0
    while depth and catching_up < 2 * controller.PROBE_PATIENCE:
        control.observe(8, depth, [], None)
        catching_up += 1
        depth = control.depth(8)
    assert controller.PROBE_STEPS < catching_up <= controller.PROBE_PATIENCE + 1


class TimedRunner(CountingRunner):
    """A step takes 1 second and 0.6 for each depth; all guesses stand until `stand` is cleared."""

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config, 100)
        self.now = 0.0
        self.stand = True

    def clock(self) -> float:
        return self.now

    def launch(self, step: list[ScheduledSequence]) -> Computed:
        results = []
        for item, result in zip(step, super().launch(step).collect(), strict=True):
            end = item.start + item.num_tokens
            stood = item.num_drafts if self.stand else 0
            tokens = tuple(range(end, end + stood + 1)) if item.samples else ()
            results.append(RowResult(tokens, num_drafted=item.num_drafts, num_draft_computed=result.num_draft_computed))
        self.now += 1 + 0.6 * max(item.num_drafts for item in step)
        return Computed(results)


def test_the_engine_follows_the_controller_on_its_clock() -> None:
    config = EngineConfig(model="none", draft_model="none", num_speculative_tokens=4, speculation_adaptive=True)
    runner = TimedRunner(config)
    engine = LLMEngine(config, runner, clock=runner.clock)

    def most_common_depth(requests: int) -> int:
        first = len(runner.steps)
        for index in range(requests):
            engine.add(str(index), [1] * 4, SamplingParams(max_tokens=300, ignore_eos=True))
            while engine.has_work():
                engine.step()
        return most_common([max(i.num_drafts for i in step) for step in runner.steps[first:]])

    assert most_common_depth(4) == 4
    assert engine.stats().accepted_tokens_per_pos[0] >= engine.stats().accepted_tokens_per_pos[3] > 0
    runner.stand = False
    assert most_common_depth(2) == 0
    assert engine.stats().spec_fallbacks >= 1
    fixed = LLMEngine(config.updated({"speculation_adaptive": False}), runner, clock=runner.clock)
    assert fixed.stats().spec_depth == 4


def test_metrics_tell_acceptance_by_position() -> None:
    stats = EngineStats(accepted_tokens_per_pos=(5, 2), spec_depth=2, spec_fallbacks=1)
    text = Metrics(lambda: stats).render().decode()
    for line in (
        'spec_decode_num_accepted_tokens_per_pos_total{position="0"} 5.0',
        'spec_decode_num_accepted_tokens_per_pos_total{position="1"} 2.0',
        "spec_depth 2.0",
        "spec_fallbacks_total 1.0",
    ):
        assert f"servetune:{line}\n" in text
