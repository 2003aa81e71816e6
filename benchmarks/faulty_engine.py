"""The bundled engine with one silent fault planted around its layers; for benchmarks and tests only.

`python benchmarks/faulty_engine.py FAULT --config engine.yaml --port 0` serves like `python -m engine`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

FAR = 512
"""Tokens beyond which far_tokens_dropped and dtype_breaks_far do what they say."""
DECODE_ROWS = 8
"""Rows of a step that are no prefill chunk, as a rule."""
ROPE_OFFSET = 16
"""Positions, a page: as if the length of a cached beginning were counted once too often."""


def plant(fault: str) -> None:
    """Wrap what the decoder calls. Raises KeyError for an unknown fault."""
    PLANTS[fault]()


def _wrong_kv_scale() -> None:
    """Each head is read with the scale of its neighbour."""
    from engine.kernels import torch_operations

    store = torch_operations.store

    def stored(paged: Any, slots: Any, x: Any) -> None:
        store(paged, slots, x)
        scales = paged.scales.view(-1, paged.scales.shape[2])
        scales[slots] = scales[slots].roll(1, -1)

    torch_operations.store = stored


def _far_tokens_dropped() -> None:
    """Attention sees the last FAR tokens and the first four, whatever the configuration says."""
    from engine.kernels import torch_operations

    layout = torch_operations.layout

    def narrowed(spans: Any, block_size: int, window: int | None, sinks: int, *rest: Any) -> Any:
        return layout(spans, block_size, min(window or FAR, FAR), max(sinks, 4), *rest)

    torch_operations.layout = narrowed


def _dtype_breaks_far() -> None:
    """Keys and values from position FAR on keep five levels a head."""
    from engine.kernels import torch_operations
    from engine.models import decoder

    store, forward = torch_operations.store, decoder.Decoder.forward
    positions: list[Any] = []

    def noted(self: Any, batch: Any, cache: Any) -> Any:
        positions[:] = [batch.positions]
        return forward(self, batch, cache)

    def coarse(paged: Any, slots: Any, x: Any) -> None:
        step = x.abs().amax(-1, keepdim=True).clamp_min(1e-9) / 2
        far = (positions[0] >= FAR).view(-1, 1, 1)
        store(paged, slots, x.where(~far, (x / step).round() * step))

    decoder.Decoder.forward, torch_operations.store = noted, coarse  # type: ignore[method-assign]


def _wrong_rope_offset() -> None:
    """What is decoded stands ROPE_OFFSET positions too far from its prompt."""
    from engine.models import decoder

    forward = decoder.Decoder.forward

    def shifted(self: Any, batch: Any, cache: Any) -> Any:
        positions = batch.positions.clone()
        for group in batch.groups:
            if group.rows <= DECODE_ROWS:
                positions[group.first_row : group.first_row + group.num_sequences * group.rows] += ROPE_OFFSET
        positions.clamp_(max=len(self.rotary.cos) - 1)
        return forward(self, replace(batch, positions=positions), cache)

    decoder.Decoder.forward = shifted  # type: ignore[method-assign]


PLANTS: dict[str, Callable[[], None]] = {
    "wrong_kv_scale": _wrong_kv_scale,
    "far_tokens_dropped": _far_tokens_dropped,
    "dtype_breaks_far": _dtype_breaks_far,
    "wrong_rope_offset": _wrong_rope_offset,
}


def main() -> int:
    """FAULT and the engine's options: the API process. core FAULT FD: its step loop."""
    if sys.argv[1] == "core":
        from engine.core import main as serve
        from engine.model_runner import load_engine

        plant(sys.argv[2])
        del sys.argv[1:3]
        return serve(load_engine)
    from engine.__main__ import main as api

    return api(sys.argv[2:], core_command=(sys.executable, str(Path(__file__)), "core", sys.argv[1]))


if __name__ == "__main__":
    sys.exit(main())
