"""/metrics of a live engine, read by Prometheus's own parser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Engine, running

from engine.metrics import Metrics
from engine.sequence import EngineStats
from engine.service import MAX_LABELS, OTHERS

PREFIX = "servetune:"
Samples = dict[tuple[str, str], float]
REPEATING = [20, 21, 22, 23] * 12
"""What the model answers repeats too, so that n-grams are found."""


def read(text: str) -> Samples:
    """Value of each sample by its name without prefix and its one label."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families), "a name twice"
    assert all(family.documentation and family.name.startswith(PREFIX) for family in families)
    return {
        (sample.name.removeprefix(PREFIX), next(iter(sample.labels.values()), "")): sample.value
        for family in families
        for sample in family.samples
        if "le" not in sample.labels
    }


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[Engine]:
    settings = {"model": str(tiny_llama), "kv_cache_memory_bytes": 4_000_000, "kv_window": 32, "block_size": 8}
    speculation = {"num_speculative_tokens": 3, "speculative_method": "ngram", "speculation_adaptive": True}
    with running({**settings, **speculation}) as process:
        yield process


async def complete(http: aiohttp.ClientSession, tenant: str, **body: Any) -> None:
    body = {"prompt": REPEATING, "max_tokens": 40, "temperature": 0, "ignore_eos": True, **body}
    headers = {"X-Tenant": tenant, "X-SLO-Class": "chat" if tenant == "alice" else "docs"}
    async with http.post("/v1/completions", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        await response.read()


async def test_service_and_acceptance_by_tenant_and_class(engine: Engine) -> None:
    odd = 'a "quoted"\\back, {brace}'
    async with aiohttp.ClientSession(engine.url) as http:
        await complete(http, "alice")
        await complete(http, "alice", stream=True, max_tokens=24)
        await complete(http, odd, max_tokens=8)
        await complete(http, "", user="bob", max_tokens=1)
        score = {"items": [{"prompt": [20, 21], "target": [22, 23, 24]}]}
        async with http.post("/score", json=score, headers={"X-Tenant": "carol"}) as response:
            assert response.status == 200
        async with http.get("/metrics") as response:
            found = read(await response.text())
    served = {
        tenant: (found["tenant_prompt_tokens_total", tenant], found["tenant_generation_tokens_total", tenant])
        for tenant in ("alice", odd, "bob", "carol")
    }
    assert served == {"alice": (96, 64), odd: (48, 8), "bob": (48, 1), "carol": (2, 3)}
    drafted = {tenant: found["tenant_spec_draft_tokens_total", tenant] for tenant in served}
    accepted = {tenant: found["tenant_spec_accepted_tokens_total", tenant] for tenant in served}
    assert drafted["alice"] > 0 == drafted["bob"] == drafted["carol"]
    assert all(0 <= accepted[tenant] <= drafted[tenant] for tenant in served)
    assert sum(drafted.values()) == found["spec_decode_num_draft_tokens_total", ""]
    assert found["class_generation_tokens_total", "chat"] == 64 and found["class_generation_tokens_total", "docs"] == 9
    assert found["class_spec_draft_tokens_total", "chat"] == drafted["alice"]
    assert found["class_spec_accepted_tokens_total", "chat"] == accepted["alice"]
    assert sum(accepted.values()) == found["spec_decode_num_accepted_tokens_total", ""]
    assert found["kv_evicted_pages_total", ""] > 0
    assert found["spec_depth", ""] in range(4)
    assert ("spec_fallbacks_total", "") in found
    positions = [found["spec_decode_num_accepted_tokens_per_pos_total", str(i)] for i in range(3)]
    assert sum(positions) == found["spec_decode_num_accepted_tokens_total", ""]


def test_tenants_cannot_multiply_the_series() -> None:
    metrics = Metrics(EngineStats)
    for index in range(10 * MAX_LABELS):
        metrics.tenants.serve(f"tenant-{index}", generated=1)
    metrics.tenants.serve("tenant-3", generated=5)
    found = read(metrics.render().decode())
    by_tenant = {label: value for (name, label), value in found.items() if name == "tenant_generation_tokens_total"}
    assert len(by_tenant) == MAX_LABELS + 1
    assert (by_tenant["tenant-3"], by_tenant[OTHERS]) == (6, 9 * MAX_LABELS)
