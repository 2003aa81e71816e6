"""Prometheus metrics of one engine, under vLLM's names with the prefix servetune: (times in seconds)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.sequence import EngineStats, FinishReason
from engine.service import Service

PREFIX = "servetune:"

SECONDS = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3,
    0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0,
)  # fmt: skip
TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000)


class Metrics:
    """The registry. Counters and gauges are read from the engine's latest stats, histograms are fed by requests.

    tenants, classes: who got what, by tenant and by SLO class.
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StatsCollector(stats))
        self.tenants = Service(PREFIX, "tenant", "tenant")
        self.classes = Service(PREFIX, "class", "slo_class")
        self._registry.register(self.tenants)
        self._registry.register(self.classes)
        self._first = self._histogram("time_to_first_token_seconds", "From arrival to the first token.", SECONDS)
        self._gap = self._histogram("inter_token_latency_seconds", "Between steps that gave a request tokens.", SECONDS)
        self._per_token = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per token after the first.", SECONDS
        )
        self._whole = self._histogram("e2e_request_latency_seconds", "From arrival to the last token.", SECONDS)
        self._prompt = self._histogram("request_prompt_tokens", "Prompt lengths of finished requests.", TOKENS)
        self._output = self._histogram("request_generation_tokens", "Output lengths of finished requests.", TOKENS)
        self._success = Counter(
            PREFIX + "request_success", "Finished requests.", ["finished_reason"], registry=self._registry
        )
        self._refused = Counter(
            PREFIX + "request_refused",
            "Requests turned away, by the limit they met.",
            ["limit"],
            registry=self._registry,
        )
        self._truncated = self._counter("prompts_truncated", "Prompts cut to fit max_model_len.")
        self._truncated_tokens = self._counter("prompt_tokens_truncated", "Prompt tokens cut away for that.")

    def truncated(self, tokens: int) -> None:
        """tokens: those cut away."""
        self._truncated.inc()
        self._truncated_tokens.inc(tokens)

    def refused(self, limit: str) -> None:
        self._refused.labels(limit).inc()

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def step_gap(self, seconds: float) -> None:
        self._gap.observe(seconds)

    def finished(
        self, reason: FinishReason, prompt_tokens: int, output_tokens: int, whole_s: float, decode_s: float
    ) -> None:
        """whole_s: arrival to last token. decode_s: first to last token."""
        self._success.labels(reason).inc()
        self._prompt.observe(prompt_tokens)
        self._output.observe(output_tokens)
        self._whole.observe(whole_s)
        if output_tokens > 1:
            self._per_token.observe(decode_s / (output_tokens - 1))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(PREFIX + name, text, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(PREFIX + name, text, buckets=buckets, registry=self._registry)


class _StatsCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        used = stats.blocks_total - stats.blocks_free
        usage = used / stats.blocks_total if stats.blocks_total else 0.0
        yield _gauge("num_requests_running", "Requests in the running batch.", stats.running)
        yield _gauge("num_requests_waiting", "Requests waiting for a place or for pages.", stats.waiting)
        yield _gauge("kv_cache_usage_perc", "Share of KV pages in use, 0 to 1.", usage)
        yield _counter("num_preemptions", "Requests thrown out to be recomputed.", stats.preemptions)
        yield _counter("prompt_tokens", "Prompt tokens computed.", stats.prompt_tokens)
        yield _counter("generation_tokens", "Tokens generated.", stats.generation_tokens)
        yield _counter("spec_decode_num_drafts", "Drafts verified.", stats.drafts)
        yield _counter("spec_decode_num_draft_tokens", "Tokens drafted.", stats.draft_tokens)
        yield _counter("spec_decode_num_accepted_tokens", "Drafted tokens accepted.", stats.accepted_tokens)
        yield _per_position(stats.accepted_tokens_per_pos)
        yield _gauge("spec_depth", "Tokens guessed for a sequence in the present step.", stats.spec_depth)
        yield _counter("spec_fallbacks", "Times that guessing stopped because it did not pay.", stats.spec_fallbacks)
        yield _counter("kv_evicted_pages", "KV pages freed before their sequence ended.", stats.evicted_blocks)
        yield _counter("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_cache_queries)
        yield _counter("prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_cache_hits)
        yield _counter("steps", "Forward passes.", stats.steps)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _per_position(accepted: tuple[int, ...]) -> Metric:
    name = PREFIX + "spec_decode_num_accepted_tokens_per_pos"
    family = CounterMetricFamily(name, "Drafted tokens accepted, by position in the draft.", labels=["position"])
    for position, count in enumerate(accepted):
        family.add_metric([str(position)], count)
    return family
