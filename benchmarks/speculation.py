"""The adaptive controller on the real engine: the mini pair, closed loop, against no speculation and fixed depths.

Each cell is a slice of traffic at a concurrency: `known` text, which the draft was trained on, and the `shifted` slice,
which it was not. All settings run over the same requests in turns; output tokens a second, best of ROUNDS.
Settings to run may be named as arguments, `none` among them.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.config import EngineConfig
from engine.llm_engine import LLMEngine
from engine.mini import corpus
from engine.model_runner import load_engine
from engine.sequence import SamplingParams

MINI = Path(__file__).parent.parent / "engine" / "mini"
ROUNDS = 2
DEPTH = 4
OUTPUT_TOKENS = 96
REQUESTS = {1: 4, 16: 32}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "fixed": {"num_speculative_tokens": DEPTH},
    "adaptive": {"num_speculative_tokens": DEPTH, "speculation_adaptive": True},
    "ngram fixed": {"num_speculative_tokens": DEPTH, "speculative_method": "ngram"},
    "ngram adaptive": {
        "num_speculative_tokens": DEPTH,
        "speculative_method": "ngram",
        "speculation_adaptive": True,
    },
}


def prompts(kind: str, count: int) -> list[list[int]]:
    """Chats of the slice up to the answer, as token ids."""
    tokenizer = Tokenizer.from_file(str(MINI / "mini" / "tokenizer.json"))
    rng = random.Random(kind)
    texts = [corpus.as_chat(corpus.chat_prompt(rng, shifted_share=float(kind == "shifted"))) for _ in range(count)]
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def run(engine: LLMEngine, texts: list[list[int]], concurrency: int) -> dict[str, Any]:
    """All requests, `concurrency` at a time. depths: steps by the depth that was chosen."""
    before = engine.stats()
    waiting = list(enumerate(texts))
    running = 0
    depths: dict[int, int] = {}
    start = time.perf_counter()
    while waiting or running:
        while waiting and running < concurrency:
            index, prompt = waiting.pop()
            engine.add(str(index), prompt, SamplingParams(max_tokens=OUTPUT_TOKENS, ignore_eos=True))
            running += 1
        running -= sum(output.finish_reason is not None for output in engine.step())
        depth = engine.stats().spec_depth
        depths[depth] = depths.get(depth, 0) + 1
    seconds, after = time.perf_counter() - start, engine.stats()
    drafted = after.draft_tokens - before.draft_tokens
    return {
        "tokens_per_second": round((after.generation_tokens - before.generation_tokens) / seconds),
        "acceptance": round((after.accepted_tokens - before.accepted_tokens) / drafted, 2) if drafted else None,
        "depths": dict(sorted(depths.items())),
        "fallbacks": after.spec_fallbacks - before.spec_fallbacks,
    }


def measure(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each slice and concurrency: the settings' figures and their speed as a ratio to no speculation."""
    pair = {"model": str(MINI / "mini"), "draft_model": str(MINI / "mini-draft")}
    engines = {
        name: load_engine(EngineConfig(**pair, **settings)) for name, settings in SETTINGS.items() if name in names
    }
    for concurrency, count in REQUESTS.items():
        for kind in ("known", "shifted"):
            cell: dict[str, Any] = {}
            for _ in range(ROUNDS):
                for name, engine in engines.items():
                    result = run(engine, prompts(kind, count), concurrency)
                    if result["tokens_per_second"] > cell.get(name, {"tokens_per_second": 0})["tokens_per_second"]:
                        cell[name] = result
            for result in cell.values():
                result["ratio"] = round(result["tokens_per_second"] / cell["none"]["tokens_per_second"], 2)
            yield f"{kind}, concurrency {concurrency}", cell


if __name__ == "__main__":
    for title, settings in measure(sys.argv[1:] or list(SETTINGS)):
        print(title)
        for name, result in settings.items():
            print(f"  {name:15} {result}", flush=True)
