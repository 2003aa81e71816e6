"""What speculation brought so far, and how deep the next step guesses."""

from __future__ import annotations

from engine.config import EngineConfig
from engine.scheduler import USUAL_DRAFT_LAG, ScheduledSequence
from engine.speculative.controller import SpeculationController


class SpeculationMeter:
    """Counters since start. depth: guesses of the present step, for each decoding sequence."""

    def __init__(self, config: EngineConfig) -> None:
        self.depth = 0
        self.drafts = self.draft_tokens = self.accepted_tokens = 0
        self.accepted_per_position: list[int] = []
        self._retired_fallbacks = 0
        self._controller: SpeculationController | None = None
        self.configure(config)

    @property
    def fallbacks(self) -> int:
        """How often the controller stopped guessing."""
        return self._retired_fallbacks + (self._controller.fallbacks if self._controller else 0)

    def configure(self, config: EngineConfig) -> None:
        """Start to measure afresh under `config`; counters go on."""
        self._retired_fallbacks = self.fallbacks
        most = config.num_speculative_tokens
        adaptive = config.speculation_adaptive and most
        self._controller = SpeculationController(most, config.speculation_min_acceptance) if adaptive else None
        self._uses_draft_model = config.uses_draft_model
        self.depth = most
        self.accepted_per_position += [0] * (most - len(self.accepted_per_position))

    def choose_depth(self, num_decodes: int) -> int:
        """Guesses for each of `num_decodes` sequences in the next step."""
        if self._controller is not None and num_decodes:
            self.depth = self._controller.depth(num_decodes)
        return self.depth

    def observe(self, step: list[ScheduledSequence], guessed: list[int], accepted: list[int], seconds: float) -> None:
        """After a step and before its results reach the sequences. guessed, accepted: tokens of each one
        scheduled (what is forced counts nowhere). seconds: what the step took."""
        outcomes = []
        for item, drafted, stood in zip(step, guessed, accepted, strict=True):
            if item.sequence.params.forced is not None or not item.num_drafts:
                continue
            if drafted:
                self._count(drafted, stood)
                outcomes.append((drafted, stood))
            elif not self._uses_draft_model:
                outcomes.append((item.num_drafts, 0))  # nothing found to copy brings as little as guesses that fall
        if self._controller is not None:
            self._controller.observe(len(step), self.depth, outcomes, seconds if self._only_decodes(step) else None)

    def _count(self, drafted: int, stood: int) -> None:
        self.drafts += 1
        self.draft_tokens += drafted
        self.accepted_tokens += stood
        for position in range(stood):
            self.accepted_per_position[position] += 1

    def _only_decodes(self, step: list[ScheduledSequence]) -> bool:
        """Whether the step's time is that of decoding at this depth: no prompt, no scores, no draft catching up."""
        if any(item.num_tokens > 1 or item.sequence.params.forced is not None for item in step):
            return False
        if not self.depth:
            return True
        if self._uses_draft_model and any(item.num_drafts and item.draft_lag > USUAL_DRAFT_LAG for item in step):
            return False
        return any(item.num_drafts == self.depth for item in step)
