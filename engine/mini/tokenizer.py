"""The byte-level BPE tokenizer shared by `mini` and `mini-draft`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engine.mini import corpus, shifted
from engine.mini.slices import ASSISTANT, BOS, END, SYSTEM, USER

VOCABULARY = 2048
PAD = "<|pad|>"
SPECIAL_TOKENS = (PAD, BOS, END, SYSTEM, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def training_text(documents: int = 12000) -> Iterator[str]:
    """Text for the merges: every slice, recall twice as often so that its words become single tokens."""
    names = (*corpus.SLICES, "recall")
    for index in range(documents):
        rng = corpus.stream("tokenizer", 0, index)
        name = names[index % len(names)]
        yield corpus.document(name, rng, 400 if name == "recall" else 100)
        if name == corpus.SHIFTED_SLICE:
            yield shifted.chat(rng)


def train_tokenizer(documents: int = 12000) -> Tokenizer:
    """A byte-level BPE with single digits; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(documents), trainer)
    return tokenizer


def save(tokenizer: Tokenizer, directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; `<|end|>` ends documents and turns alike."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def load(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory; special tokens in a text become their ids, nothing is added."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))
