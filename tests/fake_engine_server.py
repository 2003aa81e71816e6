"""An engine that speaks the contract and computes nothing: python fake_engine_server.py --config FILE --port 0.

Answers take a time in closed form. FILE's model directory may hold faults.json, a list of
{"when": {field: value}, "do": fault}. At the start: "refuse" (exit 2, and a refusal at /reconfigure), "oom" (exit 3),
"silent" (never listens). At the first completion: "crash" (exit 4), "oom_later" (exit 3), "hang". "reject" refuses at
/reconfigure; "child" starts a process that
would outlive the engine. Each start is noted in starts.txt there and its FILE kept as launched-PID.yaml, each
reconfiguration in changes.jsonl, each reset of the prefix cache in resets.txt by the tokens generated before it. An
engine that hangs leaves hangs.txt, which the next one removes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

EXIT = {"refuse": 2, "oom": 3, "crash": 4, "oom_later": 3}
FIRST_TOKEN_SECONDS, NEXT_TOKEN_SECONDS = 0.02, 0.002


class FakeEngine:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.model = Path(config["model"])
        self.tokens = 0
        self.running = 0

    def fault(self, *names: str) -> str | None:
        path = self.model / "faults.json"
        for rule in json.loads(path.read_text()) if path.exists() else []:
            if rule["do"] in names and all(self.config[key] == value for key, value in rule["when"].items()):
                return str(rule["do"])
        return None

    async def completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if (fault := self.fault("crash", "oom_later", "hang")) is not None:
            if fault == "hang":
                (self.model / "hangs.txt").touch()
                await asyncio.sleep(3600)
            print(f"dying of {fault}", file=sys.stderr, flush=True)
            os._exit(EXIT[fault])
        if not body.get("stream"):
            words = str(body["prompt"]).split()
            return web.json_response({"choices": [{"index": 0, "text": f" w{words[-1]}", "finish_reason": "stop"}]})
        self.running += 1
        try:
            return await self._stream(request, body)
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count = body["max_tokens"]
        for index in range(count):
            await asyncio.sleep(NEXT_TOKEN_SECONDS if index else FIRST_TOKEN_SECONDS)
            self.tokens += 1
            reason = "length" if index == count - 1 else None
            choice = {"index": 0, "text": "x", "token_ids": [1], "finish_reason": reason}
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        usage = {"prompt_tokens": 2, "completion_tokens": count, "total_tokens": count + 2}
        await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
        await response.write_eof()
        return response

    async def score(self, request: web.Request) -> web.Response:
        items = (await request.json())["items"]
        loss = 0.001 if self.config["kv_cache_dtype"] == "int8" else 0.0
        scores = [{"tokens": [1, 2], "logprobs": [-1 - loss, -2 - loss], "top_tokens": [1, 2]} for _ in items]
        return web.json_response({"items": scores})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": self.model.name, "object": "model"}]})

    async def metrics(self, request: web.Request) -> web.Response:
        name = "servetune:generation_tokens"
        return web.Response(text=f"# TYPE {name} counter\n{name}_total {float(self.tokens)}\n")

    async def reconfigure(self, request: web.Request) -> web.Response:
        changes = (await request.json())["changes"]
        wanted = self.config | changes
        if self.running:
            return _error(409, f"{self.running} requests are in flight")
        before, self.config = self.config, wanted
        if self.fault("reject", "refuse") is not None:
            self.config = before
            return _error(409, "the pool cannot hold one sequence")
        with (self.model / "changes.jsonl").open("a") as file:
            file.write(json.dumps(changes) + "\n")
        return web.json_response({"cost": "hot", "seconds": 0.0, "config": wanted})

    async def reset_prefix_cache(self, request: web.Request) -> web.Response:
        if self.running:
            return _error(409, f"{self.running} requests are in flight")
        with (self.model / "resets.txt").open("a") as file:
            file.write(f"{self.tokens}\n")
        return web.Response()


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


async def _serve(engine: FakeEngine) -> None:
    app = web.Application()
    app.add_routes([
        web.post("/v1/completions", engine.completions),
        web.post("/score", engine.score),
        web.post("/reconfigure", engine.reconfigure),
        web.post("/reset_prefix_cache", engine.reset_prefix_cache),
        web.get("/v1/models", engine.models),
        web.get("/metrics", engine.metrics),
    ])  # fmt: skip
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"listening http://{host}:{port}", flush=True)
    await asyncio.Event().wait()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--port", type=int)
    launched = parser.parse_args().config.read_bytes()
    engine = FakeEngine(yaml.safe_load(launched))
    (engine.model / "hangs.txt").unlink(missing_ok=True)
    (engine.model / f"launched-{os.getpid()}.yaml").write_bytes(launched)
    with (engine.model / "starts.txt").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if (fault := engine.fault("refuse", "oom", "silent")) is not None:
        if fault == "silent":
            asyncio.run(asyncio.sleep(3600))
        print(f"engine: cannot start: {fault}", file=sys.stderr)
        return EXIT[fault]
    if engine.fault("child") is not None:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        with (engine.model / "starts.txt").open("a") as file:
            file.write(f"{child.pid}\n")
    asyncio.run(_serve(engine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
