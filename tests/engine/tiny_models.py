"""Tiny random checkpoints written by transformers: the oracle's own format, and the oracle's answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from engine.llm_engine import LLMEngine
from engine.sequence import SamplingParams

VOCAB = 384
SPECIAL = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_model(
    directory: Path, family: str = "llama", seed: int = 1, layers: int = 2, hidden: int = 64, **keys: Any
) -> Path:
    """A random model with 4 query heads over 2 key/value heads and 512 positions. keys: of config.json."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        # Wide enough that random weights give a spread of logits instead of near ties.
        "initializer_range": 0.1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        **keys,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings), dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # Biases are 0 and norms 1 at the start: forgetting them would go unseen.
                parameter.add_(torch.randn_like(parameter) * (0.1 if name.endswith("weight") else 0.5))
    model.save_pretrained(directory, safe_serialization=True)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the server answers the client and the client asks again"] * 20, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def edit_config(directory: Path, **changes: Any) -> None:
    """Rewrite keys of config.json; ... removes one."""
    file = directory / "config.json"
    values = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def random_ids(length: int, seed: int = 7) -> list[int]:
    return torch.randint(4, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


OUTPUT = 30
PROMPT = random_ids(90)


def greedy(engine: LLMEngine, prompt: list[int] = PROMPT) -> list[int]:
    """OUTPUT greedy tokens through the engine's front door."""
    engine.add("a", prompt, SamplingParams(max_tokens=OUTPUT, ignore_eos=True))
    tokens: list[int] = []
    while engine.has_work():
        tokens += [t for output in engine.step() for t in output.tokens]
    return tokens


def transformers_greedy(model: PreTrainedModel, prompt: list[int] = PROMPT) -> list[int]:
    out = model.generate(
        torch.tensor([prompt]), max_new_tokens=OUTPUT, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()
