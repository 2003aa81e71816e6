"""Metrics of the model pair on held-out text, with the dense network: perplexity, recall, greedy acceptance.

The figures of the model card come through the serving path (`card.py`); these need no engine and say during training
where the pair stands: `python -m engine.mini.measure [--models DIR]`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from engine.mini import corpus, probes, tokenizer
from engine.mini.network import Network, Shape
from engine.mini.slices import END

HERE = Path(__file__).parent


def load_network(directory: Path) -> Network:
    """The network of a model directory, its bfloat16 weights held in float32."""
    config = json.loads((directory / "config.json").read_text())
    network = Network(Shape(**{field.name: config[field.name] for field in fields(Shape)}))
    weights = load_file(directory / "model.safetensors")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return network.eval()


@torch.no_grad()
def perplexity(network: Network, tok: Tokenizer, name: str, documents: int = 24, split: str = "validation") -> float:
    """exp of the mean negative log-likelihood a token over held-out forced probes' prompts and targets."""
    total, count = 0.0, 0
    for index in range(documents):
        probe = probes.probe(name, corpus.stream(split, 0, index), tok)
        prompt, target = tok.encode(probe.prompt).ids, tok.encode(probe.target).ids
        logits = network(torch.tensor([prompt + target]))[0, len(prompt) - 1 : -1]
        total += float(functional.cross_entropy(logits, torch.tensor(target), reduction="sum"))
        count += len(target)
    return math.exp(total / count)


@torch.no_grad()
def recall_accuracy(network: Network, tok: Tokenizer, tokens: int, count: int = 48, split: str = "validation") -> float:
    """Share of recall answers, end mark included, that greedy decoding gets exactly right in prompts of `tokens`."""
    right = 0
    for index in range(count):
        probe = probes.recall_probe(corpus.stream(split, tokens, index), tokens, tok)
        prompt, answer = tok.encode(probe.prompt).ids, tok.encode(probe.target + END).ids
        # Greedy decoding reproduces the answer exactly when each of its tokens is the argmax given those before it.
        logits = network(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
        right += int(logits.argmax(-1).tolist() == answer)
    return right / count


@torch.no_grad()
def greedy(network: Network, prompts: Sequence[Sequence[int]], steps: int) -> list[Tensor]:
    """Prompts with up to `steps` greedy tokens each, whole prefix recomputed at every token; stops at `<|end|>`."""
    end = tokenizer.SPECIAL_TOKENS.index(END)
    results = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(min(steps, network.shape.max_position_embeddings - len(prompt))):
            states = network.hidden(torch.tensor([ids]))[0, -1]
            ids.append(int((network.model.embed_tokens.weight @ states).argmax()))
            if ids[-1] == end:
                break
        results.append(torch.tensor(ids))
    return results


@torch.no_grad()
def acceptance(target: Network, draft: Network, tok: Tokenizer, name: str, count: int = 12, steps: int = 48) -> float:
    """Share of the target's greedy tokens that are the draft's argmax too, after held-out prompts of a slice."""
    agreed, total = 0, 0
    for index in range(count):
        prompt = tok.encode(probes.probe(name, corpus.stream("validation", 1, index), tok).prompt).ids
        (ids,) = greedy(target, [prompt], steps)
        guesses = draft(ids[None, :-1])[0, len(prompt) - 1 :].argmax(-1)
        agreed += int((guesses == ids[len(prompt) :]).sum())
        total += len(guesses)
    return agreed / total


def report(models: Path) -> None:
    """Print the three metrics of the models found under `models`."""
    tok = tokenizer.load(models / "mini")
    networks = {name: load_network(models / name) for name in ("mini", "mini-draft") if (models / name).exists()}
    for name in corpus.SLICES:
        line = [f"{key} perplexity {perplexity(network, tok, name):.3f}" for key, network in networks.items()]
        if len(networks) == 2:
            line.append(f"acceptance {acceptance(networks['mini'], networks['mini-draft'], tok, name):.1%}")
        print(f"{name:11}", "  ".join(line), flush=True)
    for tokens in (128, 256, 512, 1024, 1500, 2000):
        print("recall", tokens, f"{recall_accuracy(networks['mini'], tok, tokens):.1%}", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m engine.mini.measure", description=__doc__)
    parser.add_argument("--models", type=Path, default=HERE)
    report(parser.parse_args().models)


if __name__ == "__main__":
    main()
