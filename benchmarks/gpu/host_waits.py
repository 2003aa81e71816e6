"""What makes the host wait for the GPU between a step's spans and its logits: nothing may."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.engine_tokens import DRAFTED, MINI, served
from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.models.decoder import Decoder
from engine.paged_model import PagedModel

WATCHED = ((PagedModel, "prepare"), (Decoder, "forward"), (PagedModel, "logits"))


def host_waits(speculates: bool, requests: int = 32, output: int = 32) -> int:
    """How often a forward pass of the bundled model made the host wait (torch.cuda.set_sync_debug_mode)."""
    settings: dict[str, Any] = DRAFTED if speculates else {}
    engine = load_engine(EngineConfig(model=str(MINI / "mini"), device="cuda", **settings))
    generator = random.Random(0)
    prompts = [[generator.randrange(16, 2048) for _ in range(generator.randrange(8, 300))] for _ in range(requests)]
    served(engine, prompts, False, output)  # captures, which do wait
    waits: list[str] = []
    with ExitStack() as patches:
        for owner, name in WATCHED:
            patches.enter_context(mock.patch.object(owner, name, _watched(getattr(owner, name), waits)))
        served(engine, prompts, False, output)
    return len(waits)


def _watched(call: Callable[..., Any], waits: list[str]) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return call(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                waits.extend(str(one.message) for one in seen if "synchroniz" in str(one.message))

    return made
