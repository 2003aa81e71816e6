"""How late the replay client sends, and what a received chunk costs it, against a server that does next to nothing.

    python -m benchmarks.send_lag [--rate 200] [--seconds 10]

Prints one JSON object. Times are milliseconds, CPU per chunk microseconds (all of the client process: connecting,
sending and recording included). The server is a process of its own, on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time

import numpy as np
from aiohttp import web

from tuner.traffic.replay import replay
from tuner.traffic.trace import Request

PROMPT_TOKENS = 64
TOKENS_PER_SECOND = 50.0


async def serve() -> None:
    """Streams max_tokens single-token chunks at TOKENS_PER_SECOND; prints its port."""

    async def completions(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for left in range(body["max_tokens"], 0, -1):
            choice = {"index": 0, "text": " word", "token_ids": [17], "finish_reason": "length" if left == 1 else None}
            event = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(1 / TOKENS_PER_SECOND)
        await response.write(b"data: [DONE]\n\n")
        return response

    application = web.Application()
    application.router.add_post("/v1/completions", completions)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


def workload(rate: float, seconds: float, tokens: int) -> list[Request]:
    """Poisson arrivals, seed 0; prompts of token ids."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / rate, size=round(rate * seconds)))
    prompts = rng.integers(16, 2048, size=(len(arrivals), PROMPT_TOKENS)).tolist()
    return [
        Request(f"r{i}", at, "t", "c", tuple(prompt), tokens, output_tokens=tokens)
        for i, (at, prompt) in enumerate(zip(arrivals.tolist(), prompts, strict=True))
    ]


async def measure(rate: float, seconds: float, tokens: int) -> dict[str, float | int]:
    """One replay against a fresh server process."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.send_lag", "--serve"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        requests = workload(rate, seconds, tokens)
        before = time.process_time()
        result = await replay(requests, url, "m", token_ids=True)
        cpu = time.process_time() - before
    finally:
        server.terminate()
        server.wait()
    lags = 1e3 * np.array([record.sent - record.scheduled for record in result.records if record.sent is not None])
    chunks = sum(len(record.token_times) for record in result.records)
    p50, p95, p99 = np.percentile(lags, [50, 95, 99]).round(3).tolist()
    return {
        "rate_per_s": rate,
        "requests": len(requests),
        "failed": sum(record.error is not None for record in result.records),
        "chunks": chunks,
        "send_lag_p50_ms": p50,
        "send_lag_p95_ms": p95,
        "send_lag_p99_ms": p99,
        "send_lag_max_ms": round(float(lags.max()), 3),
        "client_cpu_us_per_chunk": round(1e6 * cpu / chunks, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "cores": os.cpu_count() or 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=200.0, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=16, help="output tokens per request, one chunk each")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve())
    else:
        print(json.dumps(asyncio.run(measure(arguments.rate, arguments.seconds, arguments.tokens))))


if __name__ == "__main__":
    main()
