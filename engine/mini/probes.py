"""`python -m engine.mini.probes`: quality probes for the tuner, one JSON object a line.

A `forced` probe is scored by the log-probabilities of its target after its prompt; a `recall` probe by whether greedy
decoding gives its target exactly, and says where in the prompt (depth, 0 to 1, of length tokens) that stands. Prompts
carry their special tokens as text. The generator states are those of the split "probe", which training never draws
from.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from engine.mini import corpus, hard, recall, shifted, slices, tokenizer, words
from engine.mini.corpus import Probe
from engine.mini.slices import ASSISTANT, BOS, END

HERE = Path(__file__).parent
LONGEST_PROMPT = 1500
LONG_RECALL = (900, 1450)
SHORT_SHARE = 0.25
"""Share of recall probes short enough for a small window, so that a window's effect shows as a step, not as a wall."""


def cut(text: str, tok: Tokenizer, at: int, target_tokens: int) -> tuple[str, str]:
    """Split `text` near its token `at`, where tokenizing both halves gives the tokens of the whole."""
    ids = tok.encode(text).ids
    for index in range(at, len(ids) - 1):
        pieces = (ids[:index], ids[index : index + target_tokens])
        prompt, target = (tok.decode(piece, skip_special_tokens=False) for piece in pieces)
        if (tok.encode(prompt).ids, tok.encode(target).ids) == pieces:
            return prompt, target
    raise ValueError("no token boundary survives re-encoding")


def forced_probe(name: str, rng: random.Random, tok: Tokenizer) -> Probe:
    """A probe of 24 to 48 target tokens: an assistant's answer for chat, otherwise the rest of a document."""
    length = rng.randint(24, 48)
    if name == "chat":
        topic = rng.choice(tuple(words.TOPICS))
        question = slices.chat_question(rng, topic)
        answer = tok.encode(slices.chat_answer(rng, topic, question[1]) + END).ids[:length]
        return Probe(name, "forced", corpus.as_chat(question[0]), tok.decode(answer, skip_special_tokens=False))
    if name == corpus.SHIFTED_SLICE and rng.random() < 0.5:
        text = BOS + shifted.chat(rng)
        start = tok.encode(text.split(ASSISTANT)[0] + ASSISTANT).ids
        return Probe(name, "forced", *cut(text, tok, len(start), length))
    before = corpus.document(name, rng, rng.choice((1, 60, 200))).replace(END, END + BOS)
    text = BOS + before + END + BOS + corpus.GENERATORS[name](rng) + END
    size = len(tok.encode(text).ids)
    return Probe(name, "forced", *cut(text, tok, max(8, size - length - rng.randint(0, 12)), length))


def recall_probe(rng: random.Random, tokens: int, tok: Tokenizer, early: float = 0.3) -> Probe:
    """A prompt of `tokens` to within one filler: a document with facts in its first `early`, one of them asked for."""
    facts = recall.draw_facts(rng, rng.randint(2, 8 if tokens >= 200 else 3))
    asked = rng.choice(facts)
    overhead = "".join(fact.statement for fact in facts) + recall.INTRODUCTION + asked.question
    budget = tokens - 4 - len(tok.encode(overhead).ids)
    texts: list[str] = []
    while True:
        text = corpus.filler(rng)
        budget -= len(tok.encode(text).ids)
        if budget < 0:
            break
        texts.append(text)
    body = recall.interleave(rng, facts, texts, early)
    prompt = corpus.as_chat(f"{recall.INTRODUCTION}{body}{asked.question}")
    return Probe("recall", "recall", prompt, asked.answer)


def probe(name: str, rng: random.Random, tok: Tokenizer, long_recall: tuple[int, int] = LONG_RECALL) -> Probe:
    """One probe of a slice; recall prompts are `long_recall` tokens long, a quarter of them 150 to 300."""
    if name != "recall":
        return forced_probe(name, rng, tok)
    short = rng.random() < SHORT_SHARE
    return recall_probe(rng, rng.randint(150, 300) if short else rng.randint(*long_recall), tok)


def generate(
    seed: int, per_slice: int, recall_probes: int, long_recall: tuple[int, int], tok: Tokenizer, per_hard: int = 0
) -> Iterator[dict[str, Any]]:
    """The probe set of a seed as it is written: `per_slice` forced probes a slice, `recall_probes` of recall, and
    `per_hard` in each of the slices of hard.py."""
    for name in corpus.SLICES:
        for index in range(recall_probes if name == "recall" else per_slice):
            made = probe(name, corpus.stream(f"probe-{name}", seed, index), tok, long_recall)
            yield written(made, f"{name}-{seed}-{index}", tok)
    for name in hard.SLICES:
        # A list of rare words is short, and lists differ much: twice as many.
        for index in range(per_hard * (2 if name == hard.RARE else 1)):
            rng = corpus.stream(f"probe-{name}", seed, index)
            yield written(hard.probe(name, rng, tok, rng.randint(*long_recall)), f"{name}-{seed}-{index}", tok)


def written(made: Probe, name: str, tok: Tokenizer) -> dict[str, Any]:
    """A probe as one line of a probe file."""
    line = {"id": name, "slice": made.slice, "kind": made.kind, "prompt": made.prompt, "target": made.target}
    if made.kind != "recall":
        return line
    depth = round(made.prompt.index(made.target) / len(made.prompt), 2)
    return {**line, "depth": depth, "length": len(tok.encode(made.prompt).ids)}


def main(arguments: list[str] | None = None) -> None:
    """Write a probe set."""
    parser = argparse.ArgumentParser(prog="python -m engine.mini.probes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-slice", type=int, default=24, help="forced probes in each slice")
    parser.add_argument("--per-hard", type=int, default=8, help="probes in each of: long, early, rare")
    parser.add_argument("--recall", type=int, default=32, help="recall probes; 29 prove a floor of 0.9 at 95 %%")
    parser.add_argument("--recall-tokens", type=int, nargs=2, default=LONG_RECALL, help="length of most recall prompts")
    parser.add_argument("--model", type=Path, default=HERE / "mini", help="directory whose tokenizer measures lengths")
    options = parser.parse_args(arguments)
    tok = tokenizer.load(options.model)
    lengths = tuple(options.recall_tokens)
    with options.out.open("w") as file:
        for line in generate(options.seed, options.per_slice, options.recall, lengths, tok, options.per_hard):
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
