"""transformers' continuous batching on the same requests and the same random weights.

`generate_batch` gives all requests one output length, so the manager that it is made of is used: warmed up first, its
graphs and cache sized by transformers itself, prefix sharing off as in ours.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from benchmarks.gpu.runs import Request, release
from engine.checkpoint import RandomTensors

POLL_S = 1.0


def transformers_seconds(
    shape: dict[str, Any], device: torch.device, requests: Sequence[Request], limit_s: float, **settings: Any
) -> tuple[str, float, int]:
    """What ran (version and attention), seconds until all were answered or `limit_s` was over, and tokens generated.

    settings: of ContinuousBatchingConfig. Tokens of requests that were not finished by then do not count. Raises
    RuntimeError when a request fails.
    """
    release()
    model = _model(shape, device)
    config = GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=max(r.output for r in requests))
    batching = ContinuousBatchingConfig(allow_block_sharing=False, **settings)
    tokens, left = 0, {str(index) for index in range(len(requests))}
    with model.continuous_batching_context_manager(config, timeout=5, continuous_batching_config=batching) as manager:
        attention = model.config._attn_implementation
        start = time.perf_counter()
        for index, request in enumerate(requests):
            manager.add_request(request.prompt, str(index), max_new_tokens=request.output, eos_token_id=-1)
        while left and time.perf_counter() - start < limit_s:
            result = manager.get_result(timeout=POLL_S)
            if result is None and not manager.is_running():
                raise RuntimeError("transformers' generation thread ended before the last request")
            if result is not None and result.is_finished():
                if result.error is not None:
                    raise RuntimeError(f"transformers: {result.error}")
                left.remove(result.request_id)
                tokens += len(result.generated_tokens)
        took = time.perf_counter() - start
        for name in left:
            manager.cancel_request(name)
    return f"transformers {transformers.__version__}, {attention}", took, tokens


def _model(shape: dict[str, Any], device: torch.device) -> Any:
    with torch.device(device):
        config = AutoConfig.for_model(**shape)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    drawn = RandomTensors(0, device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(drawn.floating(name, *parameter.shape))
    return model.eval()
