"""`python -m engine.mini.train`: tokenizer, curriculum and export of the bundled model pair.

The curriculum is copying, then short recall mixed with text, then the mixture at growing context. Data is a function
of the step number, so an interrupted run resumes from its last checkpoint with the batches it would have seen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from engine.mini import corpus, rows, tokenizer
from engine.mini.network import Network, Shape
from engine.mini.slices import BOS, END

HERE = Path(__file__).parent
SHAPES = {
    "mini": Shape(),
    "mini-draft": Shape(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    ),
}


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the curriculum: `steps` batches of `batch` rows of `length` tokens."""

    name: str
    steps: int
    batch: int
    length: int
    mixture: rows.Mixture


def _phases(slices: tuple[str, ...], plan: Iterable[tuple[str, int, int, int, float, float]]) -> list[Phase]:
    return [Phase(name, steps, batch, length, rows.Mixture(copying, recall, slices))
            for name, steps, batch, length, copying, recall in plan]  # fmt: skip


# name, steps, rows, length, share of copying, share of recall
CURRICULA = {
    "mini": _phases(corpus.SLICES, [
        ("copying", 300, 32, 96, 1.0, 0.0),
        ("recall-128", 250, 32, 128, 0.15, 0.55),
        ("mixture-256", 250, 16, 256, 0.1, 0.4),
        ("mixture-512", 300, 8, 512, 0.1, 0.4),
        ("mixture-1024", 500, 4, 1024, 0.1, 0.4),
        ("mixture-2048", 600, 2, 2048, 0.1, 0.4),
    ]),
    "mini-draft": _phases(corpus.DRAFT_SLICES, [
        ("copying", 150, 32, 96, 1.0, 0.0),
        ("recall-128", 200, 32, 128, 0.15, 0.55),
        ("mixture-256", 250, 16, 256, 0.1, 0.3),
        ("mixture-512", 120, 8, 512, 0.1, 0.3),
        ("mixture-1024", 100, 4, 1024, 0.1, 0.3),
        ("mixture-2048", 60, 2, 2048, 0.1, 0.3),
    ]),
}  # fmt: skip
MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARMUP = 50
DECAY = 0.35
"""Share of the run, at its end, over which the learning rate falls to zero."""
FIRST_SUBSET, LAST_SUBSET = 64, tokenizer.VOCABULARY - len(tokenizer.SPECIAL_TOKENS)
COPIED = 1.2
"""Nats per token below which copying counts as learned, and its token subset doubles."""


def rate_factor(step: int, total: int) -> float:
    """Warm-up, constant, then linear decay: the constant part can be lengthened without a new schedule."""
    return min(1.0, (step + 1) / WARMUP, max(0.0, (total - step) / (DECAY * total)))


def locate(phases: list[Phase], step: int) -> Phase:
    """The phase that a global step falls in."""
    for phase in phases:
        if step < phase.steps:
            return phase
        step -= phase.steps
    raise IndexError("step past the end of the curriculum")


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon trains this parameter; embeddings and norms stay with AdamW."""
    return parameter.dim() == 2 and "embed" not in name


class Run:
    """One model's training state: network, optimizer, step; checkpoints are safetensors files."""

    def __init__(self, name: str, shape: Shape, directory: Path, seed: int = 0) -> None:
        self.name, self.step, self.subset = name, 0, FIRST_SUBSET
        self.network = Network(shape, seed)
        named = list(self.network.named_parameters())
        matrices = [p for key, p in named if is_matrix(key, p)]
        others = [p for key, p in named if not is_matrix(key, p)]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01, momentum=0.95),
            torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.01, fused=True),
        )
        self.path = directory / f"{name}.checkpoint.safetensors"

    def save(self) -> None:
        """Write weights, optimizer state, step and copying subset; the rename makes it whole or absent."""
        tensors = {"progress": torch.tensor([self.step, self.subset])}
        for key, parameter in self.network.named_parameters():
            tensors[f"weight/{key}"] = parameter.detach()
            for optimizer in self.optimizers:
                for part, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"state/{part}/{key}"] = torch.as_tensor(value)
        scratch = self.path.with_suffix(".partial")
        save_file(tensors, scratch)
        scratch.replace(self.path)

    def resume(self) -> None:
        """Continue from the checkpoint if there is one."""
        if not self.path.exists():
            return
        tensors = load_file(self.path)
        self.step, self.subset = tensors["progress"].tolist()
        for key, parameter in self.network.named_parameters():
            parameter.data.copy_(tensors[f"weight/{key}"])
            owner = self.optimizers[0 if is_matrix(key, parameter) else 1]
            parts = ("momentum_buffer",) if owner is self.optimizers[0] else ("step", "exp_avg", "exp_avg_sq")
            owner.state[parameter] = {part: tensors[f"state/{part}/{key}"] for part in parts}


def update(run: Run, forward: torch.nn.Module, inputs: Tensor, targets: Tensor, factor: float) -> float:
    """One step on a batch at `factor` of the peak learning rates; the loss in nats per token."""
    for optimizer, peak in zip(run.optimizers, (MUON_RATE, ADAM_RATE), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = peak * factor
    with torch.autocast("cpu", torch.bfloat16):
        logits = forward(inputs)
    loss = functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=rows.IGNORED)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def train(run: Run, phases: list[Phase], tok: Tokenizer, *, compile_network: bool, until: int | None = None) -> None:
    """Carry `run` through the curriculum (or to step `until`), printing the loss and saving every two minutes."""
    total = sum(phase.steps for phase in phases)
    forward: torch.nn.Module = torch.compile(run.network) if compile_network else run.network  # type: ignore[assignment]
    saved = printed = time.monotonic()
    losses: list[float] = []
    tokens = 0
    last = total if until is None else until
    while run.step < last:
        phase = locate(phases, run.step)
        inputs, targets = rows.batch(tok, run.step, phase.batch, phase.length, phase.mixture, run.subset)
        losses.append(update(run, forward, inputs, targets, rate_factor(run.step, total)))
        if phase.mixture.copying < 1.0:
            run.subset = LAST_SUBSET
        elif len(losses) >= 10 and sum(losses[-10:]) / 10 < COPIED:
            run.subset = min(LAST_SUBSET, run.subset * 2)
        run.step += 1
        tokens += inputs.numel()
        if run.step % 20 == 0 or run.step == last:
            now = time.monotonic()
            print(f"{run.name} {phase.name} step {run.step}/{total} loss {sum(losses) / len(losses):.3f} "
                  f"{tokens / (now - printed):.0f} tokens/s", flush=True)  # fmt: skip
            printed, losses, tokens = now, [], 0
            if now - saved > 120 or run.step == last:
                run.save()
                saved = time.monotonic()


def scaled(phases: list[Phase], factor: float) -> list[Phase]:
    """The same curriculum with every phase's steps multiplied."""
    return [replace(phase, steps=max(1, round(phase.steps * factor))) for phase in phases]


def export(run: Run, tok: Tokenizer, directory: Path) -> None:
    """Write a Hugging Face model directory: bfloat16 weights, config, tokenizer."""
    tokenizer.save(tok, directory)
    weights = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in run.network.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    bos, end, pad = (tokenizer.SPECIAL_TOKENS.index(token) for token in (BOS, END, tokenizer.PAD))
    config = run.network.shape.hugging_face(bos, end, pad)
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": bos, "eos_token_id": end, "pad_token_id": pad}
    (directory / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> None:
    """Train one model or both and export them."""
    parser = argparse.ArgumentParser(prog="python -m engine.mini.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="where mini/ and mini-draft/ are written")
    parser.add_argument("--state", type=Path, default=Path("runs/mini-training"), help="checkpoints, for resuming")
    parser.add_argument("--model", choices=("mini", "mini-draft", "both"), default="both")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the steps of every phase")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--compile", action="store_true", help="torch.compile: a quarter faster, needs a C++ compiler")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.state.mkdir(parents=True, exist_ok=True)
    tok = tokenizer.train_tokenizer()
    for name in ("mini", "mini-draft") if options.model == "both" else (options.model,):
        run = Run(name, SHAPES[name], options.state)
        run.resume()
        phases = scaled(CURRICULA[name], options.scale)
        train(run, phases, tok, compile_network=options.compile)
        export(run, tok, options.out / name)


if __name__ == "__main__":
    main()
