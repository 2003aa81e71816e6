"""What every part is given: the device, how much to compute, and the copy bandwidth measured just now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.ceilings import copy_bandwidth, make_scratch
from benchmarks.gpu.runs import dummy_engine
from benchmarks.gpu.sizes import REHEARSAL, Sizes
from engine.llm_engine import LLMEngine
from engine.models.config import ModelConfig


@dataclass(frozen=True)
class Bench:
    """bandwidth: bytes read and written per second by a large copy, measured when the part began."""

    device: torch.device
    sizes: Sizes
    scratch: torch.Tensor
    bandwidth: float

    @staticmethod
    def on(device: torch.device) -> Bench:
        """Full sizes on a GPU, those of the rehearsal on a CPU."""
        sizes = REHEARSAL if device.type == "cpu" else Sizes()
        scratch = make_scratch(device)
        return Bench(device, sizes, scratch, copy_bandwidth(scratch, sizes.copy_bytes))

    @property
    def ceiling(self) -> str:
        return f"copy {self.bandwidth / 1e9:.0f} GB/s"

    def config(self, name: str) -> ModelConfig:
        """The shape of a model that is measured."""
        return ModelConfig.from_json(self.sizes.shape(name), name)

    def engine(self, name: str, draft: str | None = None, **settings: Any) -> LLMEngine:
        """Random weights of that shape. settings: of EngineConfig, where they differ from those of all parts."""
        usual: dict[str, Any] = {
            "device": self.device.type, "max_model_len": 4096, "max_num_seqs": 256, "max_num_batched_tokens": 16_384,
            "kv_cache_memory_bytes": self.sizes.pool_bytes,
        }  # fmt: skip
        shapes = [self.sizes.shape(model) for model in (name, draft) if model is not None]
        return dummy_engine(*shapes, **usual | settings)
