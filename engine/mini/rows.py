"""Training rows: packed text, recall conversations and copying, as token ids of one fixed length.

Copying comes first in the curriculum because induction (find the last occurrence, read what followed) is what recall
is made of. A row repeats a random permutation with a random period, rotated anew at each repeat: at a fixed
offset it would be learned by position and transfer nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.mini import corpus, shifted
from engine.mini.slices import BOS, END
from engine.mini.tokenizer import SPECIAL_TOKENS

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Mixture:
    """Shares of the row kinds (the rest is text), and the slices that the text may come from."""

    copying: float
    recall: float
    slices: tuple[str, ...] = corpus.SLICES


def copy_row(rng: random.Random, length: int, subset: int, vocabulary: int) -> tuple[list[int], list[int]]:
    """Inputs and targets (each `length`) of a rotated permutation; the first pass is not a target: it is noise."""
    longest = max(6, min(length // 8 if rng.random() < 0.7 else length // 2, subset))
    period = rng.randint(4, longest)
    tokens = rng.sample(range(len(SPECIAL_TOKENS), min(vocabulary, len(SPECIAL_TOKENS) + subset)), period)
    row: list[int] = []
    while len(row) <= length:
        start = rng.randrange(period)
        row += tokens[start:] + tokens[:start]
    targets = [IGNORED] * (period - 1) + row[period : length + 1]
    return row[:length], targets


def text_row(rng: random.Random, tokenizer: Tokenizer, length: int, slices: Sequence[str]) -> list[int]:
    """`length + 1` ids of documents, each between `<|bos|>` and `<|end|>`."""
    ids: list[int] = []
    names = [name for name in slices if name != "recall"]
    while len(ids) <= length:
        name = rng.choice((*names, "chat"))
        protocol_chat = name == corpus.SHIFTED_SLICE and rng.random() < 0.5
        text = shifted.chat(rng) if protocol_chat else corpus.GENERATORS[name](rng)
        ids += tokenizer.encode(BOS + text + ("" if text.endswith(END) else END)).ids
    return ids[: length + 1]


def recall_row(rng: random.Random, tokenizer: Tokenizer, length: int, slices: Sequence[str]) -> list[int]:
    """`length + 1` ids of one recall conversation that fits, then text."""
    ids: list[int] = []
    target = length
    while not 0 < len(ids) <= length + 1:
        text = corpus.recall_document(
            rng,
            target,
            lambda piece: len(tokenizer.encode(piece).ids),
            with_shifted=corpus.SHIFTED_SLICE in slices,
        )
        ids = tokenizer.encode(BOS + text).ids
        target = max(32, target - 32)
    return (ids + text_row(rng, tokenizer, length, slices))[: length + 1]


def batch(
    tokenizer: Tokenizer, index: int, rows: int, length: int, mixture: Mixture, subset: int
) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (rows, length), a function of `index` alone."""
    inputs, targets = [], []
    for row in range(rows):
        rng = corpus.stream("train", index, row)
        kind = rng.random()
        if kind < mixture.copying:
            source, target = copy_row(rng, length, subset, tokenizer.get_vocab_size())
        else:
            make = recall_row if kind < mixture.copying + mixture.recall else text_row
            ids = make(rng, tokenizer, length, mixture.slices)
            source, target = ids[:-1], ids[1:]
        inputs.append(source)
        targets.append(target)
    return torch.tensor(inputs), torch.tensor(targets)
