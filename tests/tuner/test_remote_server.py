"""The commands that measure a server behind a URL, against servers that are gone, that refuse, or that want a key."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from tests.fakes import cases
from tests.tuner.served import serving
from tuner.cli.__main__ import app

TENANTS = ("acme", "zeta")
SLO = ("--slo", "chat.ttft=600", "--slo", "chat.attainment=0.5", "--drain-timeout", "600")
CHUNK = {"choices": [{"index": 0, "text": "w", "finish_reason": "length"}], "usage": {"completion_tokens": 1}}


class Server:
    """Streams answers of one token to the first `answers` requests, then does `then`: "gone": breaks every connection,
    "draining": answers 503, /health too; a signal: sends it to this process and never answers; a number: answers with
    that status and OpenAI's error, though it is well."""

    def __init__(self, answers: int, then: str | int, key: str | None = None) -> None:
        self.left, self.then, self.key = answers, then, key

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "no"}}, status=401)
        if request.path == "/v1/models":
            return web.json_response({"data": [{"id": "m"}]})
        failing = self.left <= 0
        if failing and self.then == "gone":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if failing and self.then == "draining":
            return web.json_response({"error": {"message": "the server is shutting down"}}, status=503)
        if request.path == "/health":
            return web.Response()
        if isinstance(self.then, signal.Signals) and failing:
            if self.left == 0:
                os.kill(os.getpid(), self.then)
            self.left -= 1
            await asyncio.Event().wait()
        if failing:
            assert isinstance(self.then, int)
            quoted = (await request.json())["prompt"]
            return web.json_response(
                {"error": {"message": quoted, "type": "NotFoundError", "code": 404}}, status=self.then
            )
        self.left -= 1
        return web.Response(body=b"data: %s\n\ndata: [DONE]\n\n" % json.dumps(CHUNK).encode(),
                            content_type="text/event-stream")  # fmt: skip

    @property
    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self.handle)
        return application


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Twenty requests in one second, of two tenants by turns."""
    path = tmp_path / "trace.jsonl"
    lines = [
        {"id": f"r{i}", "arrival": i / 20, "tenant": TENANTS[i % 2], "slo_class": "chat",
         "prompt": "the secret of the tide", "max_tokens": 1, "output_tokens": 1}
        for i in range(20)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in [{"servetune_trace": 1, "provenance": {}}, *lines]))
    return path


@pytest.mark.parametrize("command", ["replay", "capacity", "fairness"])
@pytest.mark.parametrize("then", ["gone", "draining"])
def test_a_server_that_ends_is_no_slow_server(trace: Path, command: str, then: str) -> None:
    with serving(Server(5, then).application) as url:
        done = CliRunner().invoke(app, [command, str(trace), "--url", url, *SLO])
    assert done.exit_code == 4, done.output
    error = "connection" if then == "gone" else "http_5xx"
    assert f"tune: engine_crashed: {url}: gone; 5 of 20 requests were answered ({error}" in done.stderr
    assert "capacity" not in done.stdout and "Jain" not in done.stdout
    assert ("offered 20" in done.stdout) == (command == "replay"), "what a replay measured until then is printed"


@pytest.mark.parametrize("command", ["replay", "capacity", "fairness"])
def test_a_server_that_refuses_everything_says_why_and_no_figure_is_made_of_it(trace: Path, command: str) -> None:
    with serving(Server(0, 404).application) as url:
        done = CliRunner().invoke(app, [command, str(trace), "--url", url, "--model", "nope", *SLO])
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"tune: {url}: refuses every request of model 'nope', r0 with HTTP 404 (NotFoundError)\n" in done.stderr
    assert "tide" not in done.output, "a server's message may quote the prompt"


@pytest.mark.parametrize("then", [429, 500])
def test_a_server_that_is_well_and_fails_requests_is_measured(trace: Path, then: int) -> None:
    with serving(Server(5, then).application) as url:
        done = CliRunner().invoke(app, ["replay", str(trace), "--url", url, *SLO])
    assert done.exit_code == 0 and "good 5 " in done.stdout and f"http_{then // 100}xx: 15" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_replay_tells_what_it_saw(trace: Path, number: signal.Signals) -> None:
    last = json.loads(trace.read_text().splitlines()[-1]) | {"id": "last", "arrival": 3600.0}
    with trace.open("a") as file:
        file.write(json.dumps(last) + "\n")
    with serving(Server(8, number).application) as url:
        done = CliRunner().invoke(app, ["replay", str(trace), "--url", url, *SLO, "--json"])
    assert done.exit_code == 130, done.output
    found = json.loads(done.stdout)
    assert (found["classes"]["chat"]["offered"], found["classes"]["chat"]["good"]) == (8, 8)
    assert found["classes"]["chat"]["errors"] == {} and found["duration"] < 3600
    (doubt,) = [doubt for doubt in found["doubts"] if doubt["name"] == "stopped_early"]
    assert doubt["detail"].startswith("interrupted after ") and "in flight are left out" in doubt["detail"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_search_for_the_capacity_tells_what_it_knows(trace: Path, number: signal.Signals) -> None:
    with serving(Server(20, number).application) as url:
        done = CliRunner().invoke(app, ["capacity", str(trace), "--url", url, *SLO])
    assert done.exit_code == 130, done.output
    assert "capacity at least 1 times the recorded rate" in done.stdout
    assert "doubt: interrupted: after 1 of at most 16 replays" in done.stdout


@pytest.mark.parametrize("command", ["replay", "capacity", "fairness"])
def test_an_interruption_before_the_first_answer_has_nothing_to_tell(trace: Path, command: str) -> None:
    with serving(Server(0, signal.SIGINT).application) as url:
        done = CliRunner().invoke(app, [command, str(trace), "--url", url, *SLO])
    assert (done.exit_code, done.stdout) == (130, "")


@pytest.mark.parametrize(
    ("key", "hint"), cases([("none", None, "holds no key"), ("another", "k-2", "holds another key")])
)
def test_a_key_that_is_asked_for_is_named(
    trace: Path, key: str | None, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SERVETUNE_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("SERVETUNE_API_KEY", key)
    with serving(Server(20, 500, key="k-1").application) as url:
        done = CliRunner().invoke(app, ["replay", str(trace), "--url", url])
        monkeypatch.setenv("SERVETUNE_API_KEY", "k-1")
        right = CliRunner().invoke(app, ["replay", str(trace), "--url", url])
    assert (done.exit_code, right.exit_code) == (2, 0)
    assert done.stderr == f"tune: --url {url}: /v1/models answers HTTP 401; SERVETUNE_API_KEY {hint}\n"


@pytest.mark.parametrize("suffix", ["/", "/v1", "/v1/"])
def test_the_base_url_of_openai_clients_will_do(trace: Path, suffix: str) -> None:
    with serving(Server(20, 500).application) as url:
        done = CliRunner().invoke(app, ["replay", str(trace), "--url", url + suffix])
    assert done.exit_code == 0 and "good 20" in done.stdout, done.output
