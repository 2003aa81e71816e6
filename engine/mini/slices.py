"""Text generators of the slices that both models are trained on, except recall.

Every choice is Zipf-weighted and its ranking depends on the document's topic: the most likely continuation is then
a clear one (so two models can agree on it greedily) and still has to be inferred from the context.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from engine.mini import words

T = TypeVar("T")

USER, ASSISTANT, SYSTEM, END, BOS = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|bos|>"


def pick(rng: random.Random, options: Sequence[T], rotation: int = 0, exponent: float = 1.6) -> T:
    """One of `options`, the r-th in rank with weight r**-exponent; `rotation` says which one ranks first."""
    weights = [(rank + 1) ** -exponent for rank in range(len(options))]
    index = rng.choices(range(len(options)), weights)[0]
    return options[(index + rotation) % len(options)]


def chat_question(rng: random.Random, topic: str) -> tuple[str, str]:
    """A user's question about `topic` and its kind: brief, steps, reason, gear or detail."""
    kind = rng.choice(("brief", "steps", "reason", "gear", "detail"))
    forms = {
        "brief": (f"Tell me briefly how to start {topic}.", f"In one sentence, how do I begin with {topic}?"),
        "steps": (f"How do I start with {topic}?", f"What are the first steps in {topic}?"),
        "reason": (f"Why do people enjoy {topic}?", f"What is good about {topic}?"),
        "gear": (f"What do I need for {topic}?", f"Which things should I buy for {topic}?"),
        "detail": (f"Explain {topic} to me in detail.", f"Please write a long guide to {topic}."),
    }
    return pick(rng, forms[kind]), kind


def chat_answer(rng: random.Random, topic: str, kind: str) -> str:
    """The assistant's answer: its sentences follow from topic and kind but for a few weighted choices."""
    gear, (first, second, third), (caution, other), reason = words.TOPICS[topic]
    steps = f"First, {first}. Then {second}. After that, {third}."
    why = f"People enjoy {topic} because {reason}."
    tip = f"{pick(rng, ('Remember to', 'Try to', 'Be sure to'))} {pick(rng, (caution, other))}."
    article = "" if gear in ("shoes", "boots", "wool", "goggles") else "a "
    need = f"For {topic} you need {article}good {gear} and a little time."
    if kind == "brief":
        return f"To start {topic}, {first} and then {second}."
    if kind == "steps":
        return f"{pick(rng, ('Here is', 'This is'))} a simple way to start with {topic}. {steps} {tip}"
    if kind == "reason":
        return f"{why} {pick(rng, ('It is also', 'It is'))} easy to share with friends. {tip}"
    if kind == "gear":
        return f"{need} You can borrow the rest from a friend. {tip}"
    detail = f"Here is a guide to {topic}. {why} {need} {steps} {tip} When you feel sure, {first} again"
    return (f"{detail} and {second} a little faster. Many people who like {topic} meet once a week. They {third} "
            f"together and talk about what they learned. In the end, {topic} is simple: {first}, {second}, and "
            f"{third}. Good luck with {topic}!")  # fmt: skip


def chat(rng: random.Random) -> str:
    """A conversation of one to three turns about one topic, with special tokens as text (no `<|bos|>`)."""
    topic = rng.choice(tuple(words.TOPICS))
    parts = [f"{SYSTEM}You are mini, a small and helpful assistant.{END}"] if rng.random() < 0.2 else []
    for _ in range(rng.choice((1, 1, 2, 3))):
        question, kind = chat_question(rng, topic)
        parts.append(f"{USER}{question}{END}{ASSISTANT}{chat_answer(rng, topic, kind)}{END}")
    return "".join(parts)


def _loop_function(rng: random.Random, noun: str, group: str) -> str:
    item = group[:-1]
    kind = pick(rng, ("total", "largest", "mean", "count"), len(noun))
    if kind == "total":
        return (f"def total_{noun}({group}):\n    total = 0\n    for {item} in {group}:\n"
                f"        total += {item}.{noun}\n    return total\n")  # fmt: skip
    if kind == "largest":
        return (f"def largest_{noun}({group}):\n    best = {group}[0]\n    for {item} in {group}:\n"
                f"        if {item}.{noun} > best.{noun}:\n            best = {item}\n    return best\n")  # fmt: skip
    if kind == "mean":
        return (f"def mean_{noun}({group}):\n    if not {group}:\n        return 0\n"
                f"    return total_{noun}({group}) / len({group})\n")  # fmt: skip
    return (f"def count_{noun}({group}, limit):\n    count = 0\n    for {item} in {group}:\n"
            f"        if {item}.{noun} > limit:\n            count += 1\n    return count\n")  # fmt: skip


def code(rng: random.Random) -> str:
    """A Python-like module: a few functions over one group of objects, then a class or a test."""
    group = rng.choice(words.FUNCTION_GROUPS)
    nouns = rng.sample(words.FUNCTION_NOUNS, 2)
    parts = [f"import math\n\n# helpers for {group}\n"]
    for _ in range(rng.choice((1, 2, 2, 3))):
        parts.append(_loop_function(rng, pick(rng, nouns), group))
    item, noun = group[:-1], nouns[0]
    parts.append(
        f"class {item.capitalize()}:\n    def __init__(self, {noun}):\n        self.{noun} = {noun}\n\n"
        f"    def set_{noun}(self, value):\n        if value < 0:\n            raise ValueError(value)\n"
        f"        self.{noun} = value\n        return self\n"
    )
    return "\n\n".join(parts)


LOG_CYCLE: dict[str, tuple[str, ...]] = {
    "scheduler": ("job {n} queued by {u}", "job {n} started on node {k}", "job {n} finished without errors"),
    "gateway": ("request {n} received from {u}", "request {n} sent to backend {k}",
                "request {n} answered with status 200"),
    "storage": ("file {n} opened by {u}", "file {n} written to disk {k}", "file {n} closed after flush"),
    "billing": ("invoice {n} created for {u}", "invoice {n} checked by rule {k}", "invoice {n} paid in full"),
    "indexer": ("batch {n} loaded for {u}", "batch {n} split into {k} parts", "batch {n} merged into the index"),
}  # fmt: skip


def log(rng: random.Random) -> str:
    """A service log: each unit of work passes through the same three states, the clock moves on."""
    service = rng.choice(words.SERVICES)
    second, number = rng.randrange(3600), rng.randrange(100, 900)
    user = rng.choice(words.NAMES).lower()
    lines = []
    for _ in range(rng.randint(2, 6)):
        node = pick(rng, (3, 5, 2), rotation=len(service))
        for state, template in enumerate(LOG_CYCLE[service]):
            second += 1
            stamp = f"10:{second // 60 % 60:02d}:{second % 60:02d}"
            level = "WARN" if state == 1 and rng.random() < 0.06 else "INFO"
            lines.append(f"{stamp} {level} {service}: " + template.format(n=number, k=node, u=user))
        number += 1
    return "\n".join(lines) + "\n"


def arithmetic(rng: random.Random) -> str:
    """Running sums, times tables or word problems; every line is correct."""
    kind = rng.choice(("sum", "sum", "table", "problem"))
    if kind == "table":
        factor = rng.randint(2, 9)
        return f"Table of {factor}:\n" + "".join(f"{factor} x {i} = {factor * i}\n" for i in range(1, 11))
    if kind == "problem":
        name, a, b = rng.choice(words.NAMES), rng.randint(2, 9), rng.randint(2, 9)
        return (f"{name} has {a} apples and buys {b} more. How many apples does {name} have? {a} + {b} = {a + b}. "
                f"The answer is {a + b}.\n")  # fmt: skip
    step, value = rng.randint(1, 9), rng.randint(1, 40)
    lines = [f"Count up by {step}:\n"]
    for _ in range(rng.randint(5, 10)):
        lines.append(f"{value} + {step} = {value + step}\n")
        value += step
    return "".join(lines)


def story(rng: random.Random) -> str:
    """A short tale about one person, one place and one object; the trade decides what usually happens next."""
    name, trade = rng.choice(words.NAMES), rng.choice(words.TRADES)
    turn = words.TRADES.index(trade)
    place, thing = pick(rng, words.PLACES, turn), pick(rng, words.OBJECTS, turn)
    friend = pick(rng, [other for other in words.NAMES if other != name], turn)
    skies = ("The sun was bright", "Rain was falling", "Snow lay on the ground", "The wind was strong")
    weather = pick(rng, skies, turn)
    mood = pick(rng, ("was very happy", "was a little afraid", "was tired but proud", "could not stop laughing"), turn)
    deed = pick(rng, ("showed it to", "hid it from", "gave it to", "carried it to the house of"), turn)
    short = thing.split(" ", 1)[1]
    return (
        f"Once upon a time there was a {trade} called {name} who lived near {place}. {weather} when {name} found "
        f'{thing} on the road. "Who could have lost the {short}?" asked {name}. Nobody in {place} knew the answer. '
        f"So {name} the {trade} {deed} {friend}. {friend} looked at the {short} for a long time and smiled. "
        f'"I know this {short}," said {friend}. "It belongs to the {trade} of {place}." {name} {mood}. From that '
        f"day on, {name} and {friend} were the best of friends, and the {short} stayed near {place}.\n"
    )
