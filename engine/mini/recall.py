"""The recall slice: facts stated early, asked for late.

A fact is a key word and three value words right after it. Keys and values are drawn without replacement within a
document, so a fact is readable from the context, from nowhere else, and from one place only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.mini import words
from engine.mini.slices import ASSISTANT, END, USER

VALUE_WORDS = 3
INTRODUCTION = "Read this document and remember the records.\n"


@dataclass(frozen=True, slots=True)
class Fact:
    """One stated fact: `key` is a single word, `value` three words."""

    key: str
    value: str

    @property
    def statement(self) -> str:
        return f"Record: {self.key} {self.value}.\n"

    @property
    def answer(self) -> str:
        return f"Record: {self.key} {self.value}."

    @property
    def question(self) -> str:
        return f"What is the record of {self.key}?"


def draw_facts(rng: random.Random, count: int) -> list[Fact]:
    """`count` facts (at most 40) that share neither keys nor value words."""
    keys = rng.sample(words.FACT_KEYS, count)
    values = rng.sample(words.FACT_VALUES, count * VALUE_WORDS)
    return [Fact(key, " ".join(values[VALUE_WORDS * i : VALUE_WORDS * (i + 1)])) for i, key in enumerate(keys)]


def interleave(rng: random.Random, facts: Sequence[Fact], fillers: Sequence[str], early: float = 1.0) -> str:
    """The document's body: every fact stated between two fillers, within the first `early` share of the gaps."""
    gaps = max(1, round(early * len(fillers)))
    at: list[list[Fact]] = [[] for _ in range(len(fillers) + 1)]
    for fact in facts:
        at[rng.randrange(gaps)].append(fact)
    parts: list[str] = []
    for index, here in enumerate(at):
        parts.extend(fact.statement for fact in here)
        if index < len(fillers):
            parts.append(fillers[index])
    return "".join(parts)


def conversation(body: str, asked: Sequence[Fact]) -> str:
    """A document handed over in the first user turn, then one question and answer per fact in `asked`."""
    turns = [f"{USER}{INTRODUCTION}{body}{asked[0].question}{END}{ASSISTANT}{asked[0].answer}{END}"]
    turns += [f"{USER}{fact.question}{END}{ASSISTANT}{fact.answer}{END}" for fact in asked[1:]]
    return "".join(turns)


def fillers(
    rng: random.Random, make: Callable[[random.Random], str], length: Callable[[str], int], budget: int
) -> list[str]:
    """Filler texts by `make` up to `budget`, in the unit of `length`."""
    texts: list[str] = []
    while budget > 0:
        texts.append(make(rng))
        budget -= length(texts[-1])
    return texts
