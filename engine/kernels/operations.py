"""What a decoder does between its dense products, in two versions: torch, and kernels in Triton for a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from engine.kernels.reference import PagedTensor
from engine.layers.attention import AttentionInput, Span
from engine.layers.norm import RMSNorm
from engine.layers.quantization import QuantizedWeight
from engine.sequence import SamplingParams

Backend = Literal["torch", "triton"]


class Operations(Protocol):
    """T rows of a step, H query heads, KV key/value heads, D head size. Results are those of the torch version."""

    def layout(
        self,
        spans: list[Span],
        block_size: int,
        window: int | None,
        sink_tokens: int,
        device: torch.device,
        weigh_pages: bool = False,
    ) -> AttentionInput:
        """The step as `attend` wants it."""

    def add_norm(self, x: Tensor, delta: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
        """x + delta [T, hidden] (x where delta is None), and its norm."""

    def rotate_and_store(
        self,
        qkv: Tensor,
        angles: tuple[Tensor, Tensor],
        slots: Tensor,
        norm: RMSNorm | None,
        keys: PagedTensor,
        values: PagedTensor,
    ) -> Tensor:
        """Query rows [T, H, D], normed and rotated, of qkv [T, H + 2 KV, D]; keys and values go to their slots [T].

        angles: cos and sin of each row, [T, 1, D]. norm: of the query and key heads, if they have one.
        """

    def attend(
        self, query: Tensor, keys: PagedTensor, values: PagedTensor, batch: AttentionInput, scale: float
    ) -> Tensor:
        """Attention of query rows [T, H, D] over the stored pages of their sequences, [T, H, D]."""

    def silu_mul(self, gate_up: Tensor) -> Tensor:
        """SiLU of the first half of the columns times the second, [T, width]."""

    def sample(self, logits: Tensor, params: Sequence[SamplingParams], u: Sequence[float]) -> Tensor:
        """A token, [N] int64, for each row of logits [N, vocab] by its parameters and its u in [0, 1)."""

    def product(self, x: Tensor, weight: QuantizedWeight) -> Tensor:
        """x [T, in] @ matrix.T."""


def load_operations(backend: Backend, device: torch.device) -> Operations:
    """Raises ValueError where the backend cannot run. Only here is triton imported: the torch version needs none."""
    if backend == "torch":
        operations: Operations = importlib.import_module("engine.kernels.torch_operations")
        return operations
    try:
        operations = importlib.import_module("engine.kernels.triton_operations")
    except ModuleNotFoundError as error:
        raise ValueError(f"attention_backend: triton was asked for, {error.name} is not installed; use torch") from None
    if device.type != "cuda" and not importlib.import_module("engine.kernels.compute").INTERPRETED:
        raise ValueError("attention_backend: triton needs a GPU (or TRITON_INTERPRET=1, for tests); use torch or auto")
    return operations
