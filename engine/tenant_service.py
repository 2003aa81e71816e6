"""What each tenant got: tokens served and guesses accepted, as labelled counters of bounded number."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_TENANTS = 64
"""Tenants with a label of their own. Clients choose their names, and each label is a time series kept by somebody."""
OTHERS = "(others)"
COUNTERS = {
    "tenant_prompt_tokens": "Prompt tokens of requests that got a first token.",
    "tenant_generation_tokens": "Tokens generated, or verified by /score.",
    "tenant_spec_draft_tokens": "Tokens drafted.",
    "tenant_spec_accepted_tokens": "Drafted tokens accepted.",
}


class TenantService(Collector):
    """Counters by tenant; those that come after the first MAX_TENANTS share the label OTHERS. prefix: of the names."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._totals: dict[str, list[int]] = {}

    def serve(self, tenant: str, *, prompt: int = 0, generated: int = 0, drafted: int = 0, accepted: int = 0) -> None:
        """Tokens of one step. Plain integers: this runs for each output of each step."""
        totals = self._totals.get(tenant)
        if totals is None:
            label = tenant if len(self._totals) < MAX_TENANTS else OTHERS
            totals = self._totals.setdefault(label, [0] * len(COUNTERS))
        totals[0] += prompt
        totals[1] += generated
        totals[2] += drafted
        totals[3] += accepted

    def collect(self) -> Iterator[Metric]:
        for index, (name, text) in enumerate(COUNTERS.items()):
            family = CounterMetricFamily(self._prefix + name, text, labels=["tenant"])
            for tenant, totals in self._totals.items():
                family.add_metric([tenant], totals[index])
            yield family
