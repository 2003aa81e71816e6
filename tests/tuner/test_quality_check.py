"""`tune quality` through the front door: servers that offer prompt_logprobs and servers that do not, and mistakes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from tests.fakes import cases, make_probes
from tests.tuner.builders import forced, recall
from tests.tuner.served import serving
from tuner.cli.__main__ import app
from tuner.scoring.agreement import agreement, probes_needed, recall_grid
from tuner.scoring.probes import Probe


class Server:
    """Answers recall probes rightly, and others with words of its own; speaks vLLM's dialect where `logprobs` says."""

    def __init__(self, logprobs: bool, word: str = "yes", loss: float = 0.0, forgets: bool = False) -> None:
        self.logprobs, self.word, self.loss, self.forgets = logprobs, word, loss, forgets

    async def completions(self, request: web.Request) -> web.Response:
        body = await request.json()
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length", "text": f" {self.word}"}
        if isinstance(body["prompt"], str):
            number = body["prompt"].split()[-1]
            choice["text"] = " " + ("nothing" if self.forgets else f"w{number}")
        if "prompt_logprobs" in body:
            if not self.logprobs:
                return web.json_response({"error": {"message": "unknown field"}}, status=400)
            rows = [{str(t): {"logprob": -1.0 - self.loss, "rank": 1}} for t in body["prompt"]]
            choice["prompt_logprobs"] = [None, *rows[1:]]
        return web.json_response({"object": "text_completion", "choices": [choice], "usage": None})

    async def tokenize(self, request: web.Request) -> web.Response:
        tokens = [ord(character) for character in (await request.json())["prompt"]]
        return web.json_response({"tokens": tokens, "count": len(tokens)})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    @property
    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes([
            web.post("/v1/completions", self.completions), web.post("/tokenize", self.tokenize),
            web.get("/v1/models", self.models),
        ])  # fmt: skip
        return application


@pytest.fixture
def probes(tmp_path: Path) -> Path:
    path = tmp_path / "probes.jsonl"
    lines = [p | ({"depth": 0.1, "length": 600} if p["kind"] == "recall" else {}) for p in make_probes()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def compare(a: Server, b: Server, probes: Path, *options: str) -> Any:
    with serving(a.application) as url_a, serving(b.application) as url_b:
        command = ["quality", "--url-a", url_a, "--url-b", url_b, "--probes", str(probes), *options]
        return CliRunner().invoke(app, command)


@pytest.mark.parametrize(
    "b, verdict, path",
    cases(
        [
            ("the same", Server(True), "holds", "prefill"),
            ("likelihood lost", Server(True, loss=0.1), "lost", "prefill"),
            ("forgets", Server(True, forgets=True), "lost", "prefill"),
            ("no prompt_logprobs, recall kept: half of the probes prove nothing", Server(False), "undecided", "none"),
            ("no prompt_logprobs, forgets", Server(False, forgets=True), "lost", "none"),
        ]
    ),
)
def test_two_servers_are_compared_by_what_both_offer(probes: Path, b: Server, verdict: str, path: str) -> None:
    done = compare(Server(True), b, probes, "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["verdict"], found["forced_path"]) == (0, verdict, path)
    (cell,) = found["recall"]
    assert (cell["length"], cell["probes"], cell["right_a"], cell["right_b"]) == (512, 40, 40, 0 if b.forgets else 40)
    (agreed,) = found["agreement"]
    assert (agreed["probes"], agreed["equal"]) == (6, 0 if b.forgets else 6)


def test_tables_name_what_was_measured_and_how_sure_it_is(probes: Path) -> None:
    done = compare(Server(True), Server(True, loss=0.001), probes)
    assert done.exit_code == 0, done.output
    assert "faults of the stored cache may not show" in done.output and "verdict: holds" in done.output


def test_answers_alone_prove_no_floor_of_a_forced_probe(probes: Path) -> None:
    done = compare(Server(True), Server(False, word="no"), probes)
    assert "forced probes prove no floor: A or B offers no prompt_logprobs" in done.output
    assert "recall of B relative to A: 1.0000" in done.output and "verdict: undecided" in done.output


@pytest.mark.parametrize(
    "options, message",
    cases(
        [
            ("no probes", ["a.yaml", "b.yaml"], "--probes: expected a file of probes"),
            ("one file", ["a.yaml", "--probes", "P"], "expected two files, A.yaml and B.yaml, or --url-a and --url-b"),
            ("a missing file", ["a.yaml", "b.yaml", "--probes", "P"], "a.yaml: cannot be read"),
            (
                "nobody there",
                ["--url-a", "http://127.0.0.1:9", "--url-b", "http://127.0.0.1:9", "--probes", "P"],
                "--url-a http://127",
            ),
        ]
    ),
)
def test_mistakes_are_one_line(probes: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["quality", *(str(probes) if option == "P" else option for option in options)])
    assert done.exit_code == 2 and message in done.output and done.output.count("\n") == 1


def test_agreement_counts_equal_answers_and_how_far_the_others_go_together() -> None:
    probes = [Probe(name, "text", "forced", "x", "y") for name in "abc"]
    (found,) = agreement(probes, {"a": "one two", "b": "abcd", "c": ""}, {"a": "one two", "b": "abxd", "c": ""})
    assert (found.probes, found.equal, found.shared) == (3, 2, pytest.approx(2.5 / 3))
    assert found.low < 2 / 3 < found.high


def test_the_grid_places_probes_by_depth_and_length() -> None:
    a = [
        replace(recall(f"p{i}", True), depth=d, length=n)
        for i, (d, n) in enumerate([(0.0, 500), (0.5, 1024), (1, 1500)])
    ]
    b = [replace(record, correct=False) for record in a]
    assert [(c.depth, c.length, c.right_a, c.right_b) for c in recall_grid(a, b)] == [
        (0.0, 0, 1, 0), (pytest.approx(1 / 3), 1024, 1, 0), (pytest.approx(2 / 3), 1024, 1, 0),
    ]  # fmt: skip


def test_the_number_of_probes_is_that_of_a_power_analysis() -> None:
    """Reference: methods.md B4: sd 0.1 and a margin of 0.01 nats need 619."""
    losses = [0.1, -0.1] * 400
    a = [forced(f"p{i}", [-1.0]) for i in range(800)]
    b = [forced(f"p{i}", [-1.0 - loss]) for i, loss in enumerate(losses)]
    assert probes_needed(a, b, 0.01) == pytest.approx(619, abs=2)
    assert probes_needed(a, b, 0.0) is None
