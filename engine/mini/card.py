"""`python -m engine.mini.card`: measure the model pair through the serving path and rewrite the table in README.md.

Every figure comes from `python -m engine` over HTTP: recall by greedy completions, perplexity by `/score` (which reads
the cache as decoding does), acceptance from the engine's counters with one drafted token a step, so that it is the
share of greedy tokens on which both models agree.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from engine.mini import corpus, probes, tokenizer
from engine.mini.corpus import Probe

HERE = Path(__file__).parent
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
RECALL_LENGTHS = (250, 500, 1000, 1500, 1980)
WINDOW = 256
SEED = 7
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("full precision", {}),
    ("int8 KV", {"kv_cache_dtype": "int8"}),
    (f"window {WINDOW}", {"kv_cache_dtype": "auto", "kv_window": WINDOW}),
)


class Client:
    """Requests to one running engine."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON answer to a JSON request; an HTTP error is raised."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def counter(self, name: str) -> float:
        """The value of a Prometheus counter, whatever its prefix."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            text = response.read().decode()
        found = re.search(rf"^\S*{name}_total(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        if found is None:
            raise LookupError(f"the engine's /metrics has no counter {name}")
        return float(found.group(1))

    def complete(self, prompt: str, max_tokens: int) -> str:
        """Greedy continuation of a raw prompt."""
        body = {"prompt": prompt, "temperature": 0, "max_tokens": max_tokens}
        text: str = self.post("/v1/completions", body)["choices"][0]["text"]
        return text


@contextmanager
def engine(settings: dict[str, Any]) -> Iterator[Client]:
    """`python -m engine` on a free port with these settings, ended with the block."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "engine.yaml")
        config.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "engine", "--config", str(config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line.startswith("listening "):
                    raise RuntimeError("the engine did not start; its log is above")
                yield Client(line.split()[1])
            finally:
                process.terminate()


def recall_probes(tok: Tokenizer, tokens: int, count: int) -> list[Probe]:
    """Held-out recall probes of one length."""
    return [probes.recall_probe(corpus.stream("card", SEED * tokens, index), tokens, tok) for index in range(count)]


def slice_probes(tok: Tokenizer, name: str, count: int) -> list[Probe]:
    """Held-out probes of one slice."""
    return [probes.probe(name, corpus.stream(f"card-{name}", SEED, index), tok) for index in range(count)]


def recall(client: Client, items: list[Probe]) -> float:
    """Share of answers that greedy decoding gives exactly."""
    return sum(client.complete(item.prompt, 16) == item.target for item in items) / len(items)


def perplexity(client: Client, items: list[Probe]) -> float:
    """exp of the mean negative log-probability a target token."""
    body = {"items": [{"prompt": item.prompt, "target": item.target} for item in items]}
    scored = client.post("/score", body)["items"]
    values = [value for item in scored for value in item["logprobs"]]
    return math.exp(-sum(values) / len(values))


def acceptance(client: Client, items: list[Probe]) -> float:
    """Accepted share of the drafted tokens over greedy answers of up to 64 tokens."""
    names = ("spec_decode_num_accepted_tokens", "spec_decode_num_draft_tokens")
    before = [client.counter(name) for name in names]
    for item in items:
        client.complete(item.prompt, 64)
    accepted, drafted = (client.counter(name) - start for name, start in zip(names, before, strict=True))
    return accepted / drafted


def cache_table(client: Client, tok: Tokenizer, count: int) -> list[str]:
    """Markdown rows: recall by prompt length and chat and story perplexity, one row a cache setting."""
    header = ["KV cache", *(f"recall @ {n}" for n in RECALL_LENGTHS), "chat ppl", "story ppl"]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    sets = [recall_probes(tok, tokens, count) for tokens in RECALL_LENGTHS]
    texts = [slice_probes(tok, name, count) for name in ("chat", "story")]
    for label, changes in ROWS:
        client.post("/reconfigure", {"changes": changes})
        cells = [label, *(f"{recall(client, items):.1%}" for items in sets)]
        cells += [f"{perplexity(client, items):.4f}" for items in texts]
        lines.append(" | ".join(cells))
        print(lines[-1], flush=True)
    return [f"| {line} |" for line in lines]


def slice_table(client: Client, tok: Tokenizer, count: int) -> list[str]:
    """Markdown rows: perplexity of `mini` and greedy acceptance of `mini-draft`, one row a slice."""
    lines = ["| slice | mini ppl | greedy acceptance of mini-draft |", "| --- | --- | --- |"]
    for name in corpus.SLICES:
        items = slice_probes(tok, name, count)
        marked = f"{name} (kept from the draft)" if name == corpus.SHIFTED_SLICE else name
        lines.append(f"| {marked} | {perplexity(client, items):.3f} | {acceptance(client, items):.1%} |")
        print(lines[-1], flush=True)
    return lines


def write(table: list[str], readme: Path) -> None:
    """Replace what stands between the two marks."""
    before, rest = readme.read_text().split(BEGIN)
    _, after = rest.split(END)
    readme.write_text("\n".join([before + BEGIN, *table, END + after]))


def main() -> None:
    """Measure and rewrite."""
    parser = argparse.ArgumentParser(prog="python -m engine.mini.card", description=__doc__)
    parser.add_argument("--models", type=Path, default=HERE)
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    parser.add_argument("--count", type=int, default=60, help="probes per length and per slice")
    options = parser.parse_args()
    models: Path = options.models.resolve()  # the engine takes paths relative to its configuration file
    tok = tokenizer.load(models / "mini")
    settings = {"model": str(models / "mini"), "device": "cpu"}
    with engine(settings) as client:
        table = cache_table(client, tok, options.count)
    draft = {"draft_model": str(models / "mini-draft"), "num_speculative_tokens": 1}
    with engine({**settings, **draft}) as client:
        table += ["", *slice_table(client, tok, max(8, options.count // 3))]
    table += ["", f"{options.count} probes per recall length, {max(8, options.count // 3)} per slice, seed {SEED}."]
    write(table, options.readme)


if __name__ == "__main__":
    main()
