"""Output tokens per second over HTTP of the bundled engine and of peers, on one checkpoint, at several concurrencies.

    python -m benchmarks.engine_cpu [--peer NAME=COMMAND ...] [--rounds 3]

COMMAND starts an OpenAI-compatible server; {model}, {port} and {python} in it are filled in. One server at a time: all
share the same cores. A round visits every server once, in rotating order; figures are medians of rounds, and ratios to
the bundled engine in the same run. The first load after a start is thrown away (peers compile and warm up in it).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from benchmarks import checkpoint
from tuner.environment import environment

REQUESTS, PROMPT_TOKENS, OUTPUT_TOKENS = 32, 128, 64
CONCURRENCIES = (32, 8, 1)
START_TIMEOUT_S = 180.0
OURS = "{python} -m engine --config {model}/../engine.yaml --port {port}"
LOAD = "from pathlib import Path; from engine.config import load_config; load_engine(load_config(Path({path!r})))"
START_PARTS = (
    ("API process: interpreter and imports", "import engine.__main__"),
    ("step loop: interpreter", "pass"),
    ("step loop: import torch", "import torch"),
    ("step loop: other imports", "from engine.model_runner import load_engine"),
    ("step loop: weights and pages", f"from engine.model_runner import load_engine; {LOAD}"),
)
"""In order; each of the step loop's programs does what the one before it does, and more."""


def prompts(seed: int) -> list[list[int]]:
    """REQUESTS prompts of token ids, all different."""
    generator = random.Random(seed)
    return [[generator.randrange(300, checkpoint.VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(REQUESTS)]


async def load(url: str, model: str, concurrency: int, seed: int) -> float:
    """Output tokens per second of REQUESTS streamed requests, `concurrency` at a time."""
    places = asyncio.Semaphore(concurrency)
    # A fresh connection for each request: llama-server loses kept-alive ones.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(prompt: list[int]) -> int:
            async with places:
                return await _tokens_of(session, url, model, prompt)

        start = time.perf_counter()
        counts = await asyncio.gather(*(one(prompt) for prompt in prompts(seed)))
        return sum(counts) / (time.perf_counter() - start)


async def _tokens_of(session: aiohttp.ClientSession, url: str, model: str, prompt: list[int]) -> int:
    body = {
        "model": model, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    usage: dict[str, int] | None = None
    async with session.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            # The count is the server's own: chunks are not tokens.
            if line.startswith(b"data: {") and b'"completion_tokens"' in line:
                usage = json.loads(line[6:]).get("usage") or usage
    if usage is None or usage["completion_tokens"] != OUTPUT_TOKENS:
        raise RuntimeError(f"asked for {OUTPUT_TOKENS} tokens, the server reports {usage}")
    return usage["completion_tokens"]


@contextmanager
def served(command: str, model: Path, log: Path) -> Iterator[tuple[str, float]]:
    """A running server's URL and the seconds until it answered."""
    port = free_port()
    filled = [part.format(model=model, port=port, python=sys.executable) for part in shlex.split(command)]
    start = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(filled, stdout=output, stderr=output, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        asyncio.run(_healthy(url, process))
        yield url, time.perf_counter() - start
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_parts(config: Path) -> dict[str, float]:
    """Seconds of a start by part, one after another; in a start, tokenizer and torch load side by side."""
    parts: dict[str, float] = {}
    before = 0.0
    for name, program in START_PARTS:
        seconds = min(_seconds(program.format(path=str(config))) for _ in range(3))
        parts[name] = round(seconds - before, 2)
        before = 0.0 if name.startswith("API") else seconds
    return parts


def _seconds(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def free_port() -> int:
    """A port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.perf_counter() + START_TIMEOUT_S
    async with aiohttp.ClientSession() as session:
        while time.perf_counter() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}; see its log")
            try:
                async with session.get(f"{url}/health") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError(f"no answer from {url} within {START_TIMEOUT_S:g} s")


def measure(peers: dict[str, str], rounds: int, settings: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Medians per server: seconds to start, output tokens/s by concurrency and their ratios to ours."""
    model = checkpoint.write(directory / "llama-15m")
    (directory / "engine.yaml").write_text(yaml.safe_dump({"model": str(model), **settings}))
    servers = {"servetune": OURS, **peers}
    names = list(servers)
    starts: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, dict[int, list[float]]] = {name: {c: [] for c in CONCURRENCIES} for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            with served(servers[name], model, directory / f"{name}.log") as (url, seconds):
                starts[name].append(seconds)
                asyncio.run(load(url, str(model), CONCURRENCIES[0], seed=999))
                for concurrency in CONCURRENCIES:
                    speed = asyncio.run(load(url, str(model), concurrency, seed=turn))
                    found[name][concurrency].append(speed)
                    print(f"round {turn} {name} at {concurrency}: {speed:.0f} tokens/s", file=sys.stderr, flush=True)
    summaries = {name: _summary(starts[name], found[name], found["servetune"]) for name in names}
    summaries["servetune"]["start_parts_s"] = start_parts(directory / "engine.yaml")
    return summaries


def _summary(starts: list[float], found: dict[int, list[float]], ours: dict[int, list[float]]) -> dict[str, Any]:
    medians = {c: statistics.median(values) for c, values in found.items()}
    return {
        "start_s": round(statistics.median(starts), 1),
        "output_tokens_per_s": {c: round(value) for c, value in medians.items()},
        "range": {c: [round(min(values)), round(max(values))] for c, values in found.items()},
        "servetune_is_times": {c: round(statistics.median(ours[c]) / value, 2) for c, value in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="engine setting (YAML value)")
    arguments = parser.parse_args()
    peers = dict(entry.split("=", 1) for entry in arguments.peer)
    settings = {"dtype": "bfloat16", "max_num_seqs": 32, "max_num_batched_tokens": 2048}
    settings |= {key: yaml.safe_load(value) for key, value in (entry.split("=", 1) for entry in arguments.set)}
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(peers, arguments.rounds, settings, Path(scratch))
    print(json.dumps({"environment": environment(), "settings": settings, "engine_cpu": found}))


if __name__ == "__main__":
    main()
