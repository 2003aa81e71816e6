"""How late the replay client sends while many streams are open, against a server that does next to nothing.

    python -m benchmarks.send_lag [--rates 25 50 100 200 400] [--open 1000] [--paced steps]

Prints a table; --json prints one JSON object a rate. Milliseconds, over the requests sent once the streams are open.
`--paced steps`: all streams get their token at the same instant, as from an engine's step; `--paced apart`: each at
its own time. The server is a process of its own, on the same machine. Lag: handed to the kernel - scheduled.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

import msgspec
import numpy as np

from tuner.traffic.replay import replay
from tuner.traffic.trace import Request

PROMPT_TOKENS = 64
TOKENS = 16
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class _Asked(msgspec.Struct):
    max_tokens: int


class _Stream(asyncio.Protocol):
    """One connection of the server: max_tokens chunks, `interval` seconds apart, to each request."""

    steps: set[_Stream] = set()

    def __init__(self, interval: float, in_step: bool) -> None:
        self._interval = interval
        self._in_step = in_step
        self._rest = b""
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.steps.discard(self)
        self._left = 0

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, separator, body = self._rest.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if not separator or len(body) < int(length):
            return
        self._rest = b""
        self._left = msgspec.json.decode(body, type=_Asked).max_tokens
        self._transport.write(HEAD)
        if self._in_step:
            self.steps.add(self)
        else:
            asyncio.get_running_loop().call_later(self._interval, self.token)

    def token(self) -> None:
        if not self._left:
            return
        self._left -= 1
        choice = {"index": 0, "text": " word", "token_ids": [17], "finish_reason": None if self._left else "length"}
        event = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
        data = b"data: " + msgspec.json.encode(event) + b"\n\n"
        if not self._left:
            data += b"data: [DONE]\n\n"
        self._transport.write(b"%x\r\n%s\r\n%s" % (len(data), data, b"" if self._left else b"0\r\n\r\n"))
        if not self._left:
            self.steps.discard(self)
        elif not self._in_step:
            asyncio.get_running_loop().call_later(self._interval, self.token)


async def serve(interval: float, in_step: bool) -> None:
    """Streams one token per `interval` seconds; prints its port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(interval, in_step), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        await asyncio.sleep(interval)
        for stream in tuple(_Stream.steps):
            stream.token()


def workload(rate: float, seconds: float) -> list[Request]:
    """Poisson arrivals, seed 0; prompts of token ids."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(rng.exponential(1 / rate, size=round(rate * seconds)))
    prompts = rng.integers(16, 2048, size=(len(arrivals), PROMPT_TOKENS)).tolist()
    return [
        Request(f"r{i}", at, "t", "c", tuple(prompt), TOKENS, output_tokens=TOKENS)
        for i, (at, prompt) in enumerate(zip(arrivals.tolist(), prompts, strict=True))
    ]


async def measure(rate: float, streams: int, seconds: float, paced: str) -> dict[str, Any]:
    """One replay against a fresh server process. seconds: of sending once `streams` are open."""
    lasting = streams / rate
    command = [sys.executable, "-m", "benchmarks.send_lag", "--serve", str(lasting / TOKENS), "--paced", paced]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        requests = workload(rate, lasting + seconds)
        before = time.process_time()
        result = await replay(requests, url, "m", token_ids=True, drain_timeout=lasting + 10)
        cpu = time.process_time() - before
    finally:
        server.terminate()
        server.wait()
    measured = [r for r in result.records if r.sent is not None and r.scheduled >= lasting]
    lags = 1e3 * np.array([r.sent - r.scheduled for r in measured if r.sent is not None])
    p50, p99 = np.percentile(lags, [50, 99]).round(2).tolist()
    return {
        "rate_per_s": rate,
        "streams": streams,
        "paced": paced,
        "requests": len(measured),
        "failed": sum(record.error is not None for record in result.records),
        "p50_ms": p50,
        "p99_ms": p99,
        "max_ms": round(float(lags.max()), 2),
        "client_cpu_us_per_token": round(1e6 * cpu / sum(len(record.token_times) for record in result.records), 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rates", type=float, nargs="+", default=[25.0, 50.0, 100.0, 200.0, 400.0])
    parser.add_argument("--open", type=int, default=1000, help="streams open at a time")
    parser.add_argument("--seconds", type=float, default=10.0, help="of sending once the streams are open")
    parser.add_argument("--paced", choices=["steps", "apart"], default="steps")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        asyncio.run(serve(arguments.serve, arguments.paced == "steps"))
        return
    for number, rate in enumerate(arguments.rates):
        found = asyncio.run(measure(rate, arguments.open, arguments.seconds, arguments.paced))
        if arguments.json:
            print(json.dumps(found), flush=True)
            continue
        if number == 0:
            print(" | ".join(found))
        print(" | ".join(str(value) for value in found.values()), flush=True)


if __name__ == "__main__":
    main()
