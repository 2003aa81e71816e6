"""What makes the host wait for the GPU while it launches a step: nothing may."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.engine_tokens import DRAFTED, MINI, served
from engine.config import EngineConfig
from engine.model_runner import ModelRunner, load_engine


def host_waits(speculates: bool, requests: int = 32, output: int = 32) -> int:
    """How often launches of the bundled model's steps made the host wait (torch.cuda.set_sync_debug_mode), every other
    request being sampled. Its draft model's passes and verification are part of a launch."""
    settings: dict[str, Any] = DRAFTED if speculates else {}
    engine = load_engine(EngineConfig(model=str(MINI / "mini"), device="cuda", **settings))
    generator = random.Random(0)
    prompts = [[generator.randrange(16, 2048) for _ in range(generator.randrange(8, 300))] for _ in range(requests)]
    served(engine, prompts, True, output)  # captures, which do wait
    waits: list[str] = []
    with mock.patch.object(ModelRunner, "launch", _watched(ModelRunner.launch, waits)):
        served(engine, prompts, True, output)
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
