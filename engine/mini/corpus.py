"""Procedural corpus: unlimited documents in named slices, traffic prompts and quality probes.

Everything is a pure function of a `random.Random`; `stream(split, seed, index)` gives one per document, and the
split's name enters the seed, so that held-out text never shares a generator state with training text.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from engine.mini import recall, shifted, slices, words
from engine.mini.slices import ASSISTANT, BOS, END, USER

SHIFTED_SLICE = "protocol"
"""The slice that the draft model never sees in training."""

GENERATORS: dict[str, Callable[[random.Random], str]] = {
    "chat": slices.chat,
    "code": slices.code,
    "log": slices.log,
    "arithmetic": slices.arithmetic,
    "story": slices.story,
    SHIFTED_SLICE: shifted.protocol,
}
SLICES: tuple[str, ...] = ("chat", "code", "log", "arithmetic", "story", "recall", SHIFTED_SLICE)
DRAFT_SLICES: tuple[str, ...] = tuple(name for name in SLICES if name != SHIFTED_SLICE)
FILLER_SLICES: tuple[str, ...] = ("story", "story", "code", "log", "arithmetic")

Length = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Probe:
    """A quality probe: `prompt` with its special tokens as text, and the `target` that should follow it."""

    slice: str
    kind: str
    prompt: str
    target: str


def estimated_tokens(text: str) -> int:
    """Tokens of `text` to within about 15 %, without a tokenizer (digits are one token each)."""
    digits = sum(character.isdigit() for character in text)
    return 1 + digits + (len(text) - digits) * 10 // 43


def stream(split: str, seed: int, index: int) -> random.Random:
    """The generator of document `index` of a split such as "train", "validation", "probe" or "traffic"."""
    return random.Random(f"servetune-mini/{split}/{seed}/{index}")


def document(name: str, rng: random.Random, target_tokens: int, length: Length = estimated_tokens) -> str:
    """Text of slice `name`, about `target_tokens` long: documents joined by end marks, no leading `<|bos|>`."""
    if name == "recall":
        return recall_document(rng, target_tokens, length)
    parts: list[str] = []
    used = 0
    while used < target_tokens:
        parts.append(GENERATORS[name](rng))
        used += length(parts[-1]) + 1
    return END.join(parts)


def filler(rng: random.Random, with_shifted: bool = True) -> str:
    """A text between facts: one document of another slice that carries no special tokens."""
    names = (*FILLER_SLICES, SHIFTED_SLICE) if with_shifted else FILLER_SLICES
    return GENERATORS[rng.choice(names)](rng)


def recall_document(rng: random.Random, target_tokens: int, length: Length = estimated_tokens, *,
                    most_facts: int = 40, with_shifted: bool = True) -> str:  # fmt: skip
    """A conversation over a document with facts; the questions come at the end, in an order of their own."""
    most = max(1, min(most_facts, len(words.FACT_VALUES) // recall.VALUE_WORDS, target_tokens // 32))
    facts = recall.draw_facts(rng, rng.randint(1, most))
    asked = rng.sample(facts, len(facts))
    budget = target_tokens - length(recall.conversation("".join(fact.statement for fact in facts), asked))
    texts = recall.fillers(rng, lambda r: filler(r, with_shifted), length, budget - 60)
    return recall.conversation(recall.interleave(rng, facts, texts), asked)


def chat_prompt(rng: random.Random, shifted_share: float = 0.0) -> str:
    """A user's short question; with `shifted_share` of them asking for a text of the shifted slice."""
    if rng.random() < shifted_share:
        return shifted.request(rng)
    return slices.chat_question(rng, rng.choice(tuple(words.TOPICS)))[0]


def document_prompt(rng: random.Random, tokens: int, length: Length = estimated_tokens) -> tuple[str, str]:
    """A user's long document of about `tokens` with facts in its first half, a question at its end; and the answer."""
    facts = recall.draw_facts(rng, rng.randint(2, 8))
    asked = rng.choice(facts)
    statements = "".join(fact.statement for fact in facts)
    budget = tokens - length(recall.INTRODUCTION + statements + asked.question)
    body = recall.interleave(rng, facts, recall.fillers(rng, filler, length, budget - 60), early=0.5)
    return f"{recall.INTRODUCTION}{body}{asked.question}", asked.answer


def as_chat(user: str) -> str:
    """One user turn as a raw prompt, the same text that the chat template renders."""
    return f"{BOS}{USER}{user}{END}{ASSISTANT}"
