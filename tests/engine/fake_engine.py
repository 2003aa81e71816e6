"""A step loop without a model: the next token is the previous one plus one. For the API process's own behaviour.

Run as a program it takes the place of `python -m engine.core_process`. Prompts that begin with CRASH, OUT_OF_MEMORY or
REFUSE make it do that; STALL makes it give one token and then hold the request, AWAIT too, until the model's directory
holds a file named RELEASE.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from engine.config import EngineConfig
from engine.core import main
from engine.sequence import EngineStats, SamplingParams, SequenceOutput

AWAIT, CRASH, OUT_OF_MEMORY, REFUSE, STALL = 295, 296, 297, 298, 299
RELEASE = "release"
NEVER_LOADS_SEED = 13
MAX_MODEL_LEN = 256
VOCAB_SIZE = 300

TEXT = "the quick brown fox jumps over the lazy dog and the small cat sleeps in the warm sun by the old wall. " * 4
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass
class _Request:
    prompt: tuple[int, ...]
    params: SamplingParams
    output: list[int] = field(default_factory=list)

    @property
    def wants_a_step(self) -> bool:
        return self.prompt[0] != STALL or not self.output

    @property
    def awaits(self) -> bool:
        return self.prompt[0] == AWAIT and bool(self.output)


class FakeEngine:
    """The interface of LLMEngine."""

    def __init__(self, config: EngineConfig) -> None:
        if config.device == "cuda":
            raise ValueError("device: cuda was asked for and there is none")
        while config.seed == NEVER_LOADS_SEED:
            time.sleep(1)
        self.config = config
        self.max_model_len = config.max_model_len or MAX_MODEL_LEN
        self._requests: dict[str, _Request] = {}
        self._generated = 0
        self._steps = 0
        self.begun: list[str] = []

    def add(
        self, request_id: str, prompt: Sequence[int], params: SamplingParams, priority: int = 0, tenant: str = ""
    ) -> None:
        if prompt[0] == REFUSE:
            raise ValueError("the prompt needs 9 pages and the pool has 8")
        self._requests[request_id] = _Request(tuple(prompt), params)

    def abort(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def has_work(self) -> bool:
        return any(request.wants_a_step for request in self._requests.values())

    def step(self) -> list[SequenceOutput]:
        self._steps += 1
        self.begun = [id for id, request in self._requests.items() if not request.output]
        released = Path(self.config.model, RELEASE).exists()
        outputs = [
            self._next(id, request)
            for id, request in self._requests.items()
            if request.wants_a_step and (released or not request.awaits)
        ]
        if not outputs:
            time.sleep(0.01)
        for output in outputs:
            if output.finish_reason:
                del self._requests[output.request_id]
        return outputs

    def reconfigure(self, config: EngineConfig) -> None:
        if self._requests:
            raise ValueError("requests are in flight")
        self.config = config

    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._requests), blocks_total=8, blocks_free=6, steps=self._steps,
            generation_tokens=self._generated, drafts=1, draft_tokens=4, accepted_tokens=3,
        )  # fmt: skip

    def _next(self, request_id: str, request: _Request) -> SequenceOutput:
        if request.prompt[0] == CRASH:
            raise ZeroDivisionError("a bug")
        if request.prompt[0] == OUT_OF_MEMORY:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        params, position = request.params, len(request.output)
        token = params.forced[position] if params.forced else ((request.output or request.prompt)[-1] + 1) % VOCAB_SIZE
        request.output.append(token)
        self._generated += 1
        reason = "length" if len(request.output) == params.max_tokens else None
        if token in params.stop_token_ids:
            reason = "stop"
        marks = ((-0.5 * (position + 1),), (((token, -0.5),),)) if params.logprobs else ((), ())
        return SequenceOutput(request_id, (token,), *marks, finish_reason=reason)


def byte_level_tokenizer(eos: str = "<|end|>") -> tokenizers.Tokenizer:
    """A small BPE over bytes; its first ids are special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|begin|>", eos, "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.token_to_id("<|begin|>"))]
    )
    return tokenizer


def write_checkpoint(directory: Path) -> Path:
    """What the API process reads of a checkpoint; there are no weights."""
    byte_level_tokenizer().save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "config.json").write_text(json.dumps({"vocab_size": VOCAB_SIZE}))
    return directory


if __name__ == "__main__":
    sys.exit(main(load=FakeEngine))
