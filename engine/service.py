"""What each tenant, or each SLO class, got: tokens served and guesses accepted, as counters of a bounded number."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_LABELS = 64
"""Labels of their own. Clients choose the names, and each label is a time series kept by somebody."""
OTHERS = "(others)"
COUNTERS = {
    "prompt_tokens": "Prompt tokens of requests that got a first token.",
    "generation_tokens": "Tokens generated, or verified by /score.",
    "spec_draft_tokens": "Tokens drafted.",
    "spec_accepted_tokens": "Drafted tokens accepted.",
}


class Service(Collector):
    """Counters by `label`, their names prefix + kind + "_" + one of COUNTERS; what comes after the first MAX_LABELS
    shares the label OTHERS."""

    def __init__(self, prefix: str, kind: str, label: str) -> None:
        self._prefix = f"{prefix}{kind}_"
        self._label = label
        self._totals: dict[str, list[int]] = {}

    def serve(self, name: str, *, prompt: int = 0, generated: int = 0, drafted: int = 0, accepted: int = 0) -> None:
        """Tokens of one step. Plain integers: this runs for each output of each step."""
        totals = self._totals.get(name)
        if totals is None:
            known = name if len(self._totals) < MAX_LABELS else OTHERS
            totals = self._totals.setdefault(known, [0] * len(COUNTERS))
        totals[0] += prompt
        totals[1] += generated
        totals[2] += drafted
        totals[3] += accepted

    def collect(self) -> Iterator[Metric]:
        for index, (name, text) in enumerate(COUNTERS.items()):
            family = CounterMetricFamily(self._prefix + name, text, labels=[self._label])
            for value, totals in self._totals.items():
                family.add_metric([value], totals[index])
            yield family
