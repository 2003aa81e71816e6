"""Forced probes unlike ordinary text: what only far context, the very beginning, or copying can answer."""

from __future__ import annotations

import random

from tokenizers import Tokenizer

from engine.mini import corpus, recall
from engine.mini.corpus import Probe
from engine.mini.slices import ASSISTANT, BOS, END, SYSTEM, USER

LONG, EARLY, RARE = "long", "early", "rare"
SLICES = (LONG, EARLY, RARE)
ANSWERS = 4
"""Asked one after the other of one long document."""
RARE_WORDS = 40
PERSONA = "You are mini, a small and helpful assistant."


def long_probe(rng: random.Random, tokens: int, tok: Tokenizer) -> Probe:
    """A document of about `tokens` with records all over it; the target holds the answers to ANSWERS questions."""
    facts = recall.draw_facts(rng, 6)
    asked = rng.sample(facts, ANSWERS)
    body = recall.interleave(rng, facts, _fillers(rng, tokens - 200, tok), early=1.0)
    first = asked[0]
    turns = [f"{first.answer}{END}"] + [f"{USER}{f.question}{END}{ASSISTANT}{f.answer}{END}" for f in asked[1:]]
    return Probe(LONG, "forced", corpus.as_chat(f"{recall.INTRODUCTION}{body}{first.question}"), "".join(turns))


def early_probe(rng: random.Random, tokens: int, tok: Tokenizer) -> Probe:
    """What the system prompt says, asked for after a document of about `tokens`."""
    (fact,) = recall.draw_facts(rng, 1)
    body = "".join(_fillers(rng, tokens - 60, tok))
    user = f"{recall.INTRODUCTION}{body}{fact.question}"
    return Probe(
        EARLY, "forced", f"{BOS}{SYSTEM}{PERSONA} {fact.statement}{END}{USER}{user}{END}{ASSISTANT}", fact.answer
    )


def rare_probe(rng: random.Random, tok: Tokenizer) -> Probe:
    """A list of random words of the vocabulary and its repetition, which no grammar helps to guess."""
    words = sorted(token for token in tok.get_vocab() if token.startswith("Ġ") and token[1:].isalpha())
    drawn = "".join(" " + word[1:] for word in rng.sample(words, RARE_WORDS))
    start = rng.randint(4, 12)
    split = [index for index, character in enumerate(drawn) if character == " "][start]
    return Probe(RARE, "forced", f"{BOS}{drawn}{END}{BOS}{drawn[:split]}", drawn[split:])


def probe(name: str, rng: random.Random, tok: Tokenizer, tokens: int) -> Probe:
    """One probe of a slice; tokens: of the long prompts."""
    if name == RARE:
        return rare_probe(rng, tok)
    return (long_probe if name == LONG else early_probe)(rng, tokens, tok)


def _fillers(rng: random.Random, tokens: int, tok: Tokenizer) -> list[str]:
    return recall.fillers(rng, corpus.filler, lambda text: len(tok.encode(text).ids), tokens)
