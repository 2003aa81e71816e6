"""Records the bundled demo trace: real requests, through the recording proxy, to the bundled engine and model.

    python examples/record_demo_trace.py --out examples/demo/trace.jsonl

Two tenants over two windows of --seconds each, one to tune on and one held out, with different prompts:

    chat   arrivals like Azure LLM inference 2023 "conversation": Gamma gaps with CV 1.06 (Patel et al., ISCA 2024)
    docs   arrivals in bursts like its "code" part: inside a burst the gaps have a mean of 0.1 s (the source's median is
           0.056 s), bursts lie far apart. The source's CV of 14 comes from idle minutes in 23 minutes of recording; a
           window of 20 s with n requests cannot have a CV above sqrt(n - 1), and what it has is printed.

Times of the trace are those at which the proxy saw the requests. Lengths of the answers are what the model gave, up to
the drawn max_tokens; with --force-lengths they are the drawn numbers themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import yaml

from engine.mini import corpus
from tuner.serving.process import launch
from tuner.traffic.client import send
from tuner.traffic.recorder import record
from tuner.traffic.replay import replay
from tuner.traffic.trace import Request, Trace
from tuner.traffic.trace_file import load_trace, save_trace

MINI = Path(__file__).parent.parent / "engine" / "mini"
CHAT_CV = 1.06
BURST_SIZE = 5
"""Mean number of requests in a burst of the docs tenant."""
BURST_GAP = 0.1
"""Mean seconds between two requests of a burst."""
WINDOWS = 2
DRAIN_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """What to record. Rates per second; seconds: of one window; shifted_share: of the chat prompts."""

    chat_rate: float
    docs_rate: float
    seconds: float
    seed: int
    shifted_share: float
    force_lengths: bool


def chat_arrivals(plan: Plan) -> list[float]:
    """A Gamma renewal process over both windows; the first request comes at 0."""
    rng = random.Random(f"{plan.seed}/chat/arrivals")
    shape = 1 / CHAT_CV**2
    arrivals = [0.0]
    while arrivals[-1] < WINDOWS * plan.seconds:
        arrivals.append(arrivals[-1] + rng.gammavariate(shape, 1 / (plan.chat_rate * shape)))
    return arrivals[:-1]


def docs_arrivals(plan: Plan) -> list[float]:
    """Bursts: each window has the same number of them, one somewhere in each of its equal parts."""
    rng = random.Random(f"{plan.seed}/docs/arrivals")
    bursts = max(1, round(plan.docs_rate * plan.seconds / BURST_SIZE))
    part = plan.seconds / bursts
    arrivals: list[float] = []
    for number in range(WINDOWS * bursts):
        at = part * (number + rng.uniform(0.05, 0.6))
        size = rng.randint(BURST_SIZE - 2, BURST_SIZE + 2)
        gaps = [0.0, *(rng.expovariate(1 / BURST_GAP) for _ in range(size - 1))]
        shrink = min(1.0, 0.3 * part / max(sum(gaps), 1e-9))
        for gap in gaps:
            at += gap * shrink
            arrivals.append(at)
    return arrivals


def clipped_lognormal(rng: random.Random, median: float, sigma: float, low: int, high: int) -> int:
    return min(high, max(low, round(rng.lognormvariate(0, sigma) * median)))


def chat_request(plan: Plan, index: int, arrival: float) -> Request:
    """A short question. Each question belongs to one window by its checksum, so that the windows share none."""
    rng = corpus.stream("traffic", plan.seed, index)
    window = min(WINDOWS - 1, int(arrival // plan.seconds))
    prompt = corpus.chat_prompt(rng, plan.shifted_share)
    while zlib.crc32(prompt.encode()) % WINDOWS != window:
        prompt = corpus.chat_prompt(rng, plan.shifted_share)
    tokens = clipped_lognormal(rng, median=56, sigma=0.4, low=32, high=96)
    return request(plan, "chat", index, arrival, prompt, tokens)


def docs_request(plan: Plan, index: int, arrival: float) -> Request:
    """A long document with facts and one question at its end."""
    rng = corpus.stream("traffic", plan.seed, 1_000_000 + index)
    length = clipped_lognormal(rng, median=550, sigma=0.6, low=150, high=1100)
    prompt, _ = corpus.document_prompt(rng, length)
    return request(plan, "docs", index, arrival, prompt, rng.randint(8, 24))


def request(plan: Plan, tenant: str, index: int, arrival: float, prompt: str, tokens: int) -> Request:
    return Request(
        id=f"{tenant}-{index:04d}",
        arrival=arrival,
        tenant=tenant,
        slo_class=tenant,
        prompt=({"role": "user", "content": prompt},),
        max_tokens=tokens,
        endpoint="chat",
        output_tokens=tokens if plan.force_lengths else None,
    )


def schedule(plan: Plan) -> list[Request]:
    """All requests of both tenants, sorted by arrival."""
    chat = [chat_request(plan, i, at) for i, at in enumerate(chat_arrivals(plan))]
    docs = [docs_request(plan, i, at) for i, at in enumerate(docs_arrivals(plan))]
    return sorted(chat + docs, key=lambda request: request.arrival)


@asynccontextmanager
async def bundled_engine(directory: Path) -> AsyncIterator[str]:
    """The engine with its default configuration; yields its URL."""
    config = directory / "engine.yaml"
    config.write_text(yaml.safe_dump({"model": str(MINI / "mini")}))
    command = [sys.executable, "-m", "engine", "--config", str(config), "--port", "0"]
    process = await launch(command, {}, directory / "engine.log", timeout=120.0)
    try:
        yield process.base_url
    finally:
        await process.stop()


async def record_through_proxy(upstream: str, model: str, requests: list[Request], out: Path) -> None:
    """Offers `requests` on their schedule to a recording proxy. Raises RuntimeError unless all were recorded."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    proxy = asyncio.create_task(record(upstream, "127.0.0.1", 0, out, on_ready=ready.set_result, stop=stop))
    events: set[asyncio.Future[Any]] = {ready, proxy}
    await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not ready.done():
            proxy.result()
        replaying = asyncio.create_task(replay(requests, await ready, model, drain_timeout=DRAIN_SECONDS))
        ends: set[asyncio.Future[Any]] = {replaying, proxy}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not replaying.done():
            # Ctrl-C ends the proxy, and with it the reason to go on.
            replaying.cancel()
        result = await replaying
    finally:
        stop.set()
        recording = await proxy
    failed = sorted({record.error for record in result.records if record.error is not None})
    if failed or recording.written != len(requests):
        raise RuntimeError(f"recorded {recording.written} of {len(requests)} requests; errors: {failed}")


async def make_trace(plan: Plan, upstream: str | None, model: str) -> Trace:
    """Records into a temporary directory and returns the trace with its provenance."""
    requests = schedule(plan)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        async with bundled_engine(directory) if upstream is None else _given(upstream) as url:
            # A cold first step is the machine's, not the traffic's.
            warm = replace(requests[0], output_tokens=None)
            await send(url, model, warm, asyncio.get_running_loop().time())
            await record_through_proxy(url, model, requests, directory / "trace.jsonl")
        recorded = load_trace(directory / "trace.jsonl")
    provenance = {**_provenance(plan, model), "recorded_at": recorded.provenance["recorded_at"]}
    return Trace(recorded.requests, provenance, seconds=WINDOWS * plan.seconds)


def _provenance(plan: Plan, model: str) -> dict[str, Any]:
    return {
        "source": "examples/record_demo_trace.py, through tune record",
        "model": model,
        "arrivals": {
            "chat": f"Gamma gaps, CV {CHAT_CV}, {plan.chat_rate:g}/s (Azure LLM inference 2023 conversation)",
            "docs": f"bursts of about {BURST_SIZE}, {plan.docs_rate:g}/s (after Azure LLM inference 2023 code)",
        },
        "windows": {"tune": [0, plan.seconds], "holdout": [plan.seconds, WINDOWS * plan.seconds]},
        "seed": plan.seed,
        "forced_lengths": plan.force_lengths,
    }


@asynccontextmanager
async def _given(url: str) -> AsyncIterator[str]:
    yield url


def summary(trace: Trace, seconds: float) -> dict[str, Any]:
    """Per window and tenant: requests, CV of the gaps, tokens."""
    found: dict[str, Any] = {}
    for window in range(WINDOWS):
        cut = trace.window(window * seconds, (window + 1) * seconds)
        for tenant in cut.tenants:
            rows = [row for row in cut.requests if row.tenant == tenant]
            gaps = [later.arrival - earlier.arrival for earlier, later in pairwise(rows)]
            outputs = [row.output_tokens or 0 for row in rows]
            found[f"window {window} {tenant}"] = {
                "requests": len(rows),
                "cv_of_gaps": round(pstdev(gaps) / fmean(gaps), 2) if len(gaps) > 1 else None,
                "prompt_tokens_mean": round(fmean(row.prompt_tokens or 0 for row in rows)),
                "prompt_tokens_max": max(row.prompt_tokens or 0 for row in rows),
                "output_tokens_mean": round(fmean(outputs), 1),
                "output_tokens_range": [min(outputs), max(outputs)],
            }
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Record the bundled demo trace.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "demo" / "trace.jsonl")
    parser.add_argument("--chat-rate", type=float, default=2.5, help="chat requests per second (default: %(default)s)")
    parser.add_argument("--docs-rate", type=float, default=1.0, help="document requests per second, on average")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each of the two windows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shifted-share", type=float, default=0.2, help="chat prompts outside the draft's domains")
    parser.add_argument("--force-lengths", action="store_true", help="answers exactly as long as drawn (ignore_eos)")
    parser.add_argument("--upstream", help="a running server instead of the bundled engine, http://HOST:PORT")
    parser.add_argument("--model", default="mini", help="model name sent to the server (default: %(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    plan = Plan(
        options.chat_rate,
        options.docs_rate,
        options.seconds,
        options.seed,
        options.shifted_share,
        options.force_lengths,
    )
    trace = asyncio.run(make_trace(plan, options.upstream, options.model))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_trace(trace, options.out)
    print(json.dumps(summary(trace, options.seconds), indent=2))


if __name__ == "__main__":
    main()
