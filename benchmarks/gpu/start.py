"""Seconds from the start of `python -m engine` to the first token over HTTP, with the bundled model."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.rows import Row

ROOT = Path(__file__).parent.parent.parent
MINI = ROOT / "engine" / "mini" / "mini"
REQUEST_S = 300.0


def start_rows(bench: Bench) -> Iterator[Row]:
    """No target is known. The first start compiles its kernels, the second finds them on the disk."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "engine.yaml")
        config.write_text(yaml.safe_dump({"model": str(MINI), "device": bench.device.type}))
        environment = os.environ | {"TRITON_CACHE_DIR": str(Path(directory, "kernels"))}
        for state in ("kernels not compiled yet", "kernels compiled before"):
            ready, first = _start(config, environment)
            name = f"bundled model, start to first token, {state}"
            yield Row(name, first, "s", None, "", {"s to listening": ready})


def _start(config: Path, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds until the server listens, and until the first token came."""
    command = [sys.executable, "-m", "engine", "--config", str(config), "--drain-timeout", "0"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            ready = time.perf_counter() - began
            if not line.startswith("listening "):
                raise RuntimeError(f"the engine did not start: status {server.wait()}")
            _first_token(line.removeprefix("listening ").strip())
            return ready, time.perf_counter() - began
        finally:
            server.terminate()


def _first_token(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=REQUEST_S)
    body = {"prompt": "The server answers", "max_tokens": 2, "stream": True, "ignore_eos": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != http.HTTPStatus.OK:
        raise RuntimeError(f"the engine answered {response.status}")
    response.readline()
    connection.close()
