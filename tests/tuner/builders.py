"""Records, probes and measurements with little to say, for the tests of scoring, store, results and recommendation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tuner.scoring.probes import ProbeRecord
from tuner.serving.config import ServingConfig
from tuner.serving.measurement import Measurement
from tuner.traffic.trace import RequestRecord

ERRORS = ("refused", "http_5xx", "timeout", "truncated", "not_sent")


def answered(
    ttft: float = 0.1, gaps: Sequence[float] = (), scheduled: float = 0.0, name: str = "r", **changes: Any
) -> RequestRecord:
    """A request that was answered: first token `ttft` s after its scheduled arrival, then one token a gap."""
    times = [scheduled + ttft]
    for gap in gaps:
        times.append(times[-1] + gap)
    values: dict[str, Any] = {
        "request_id": name,
        "tenant": "t",
        "slo_class": "chat",
        "scheduled": scheduled,
        "sent": scheduled,
        "token_times": tuple(times),
        "prompt_tokens": 8,
        "output_tokens": len(times),
        "expected_tokens": len(times),
        "finish_reason": "length",
    }
    return RequestRecord(**{**values, **changes})


def failed(error: str | None = "timeout", name: str = "r", **changes: Any) -> RequestRecord:
    """A request that never got its answer."""
    unanswered = {"token_times": (), "output_tokens": 0, "finish_reason": None, "error": error, **changes}
    return answered(name=name, **unanswered)


def requests() -> st.SearchStrategy[RequestRecord]:
    """Answered requests with latencies from microseconds to minutes, and failed ones."""
    seconds = st.floats(1e-6, 100.0)
    good = st.builds(answered, ttft=seconds, gaps=st.lists(seconds, max_size=4))
    return st.one_of(good, st.builds(failed, st.sampled_from(ERRORS)))


def forced(name: str, logprobs: Sequence[float], top: Sequence[int] | None = None, slice_: str = "text") -> ProbeRecord:
    """A forced probe whose tokens are 0, 1, 2…, each the top token unless `top` says otherwise."""
    tokens = tuple(range(len(logprobs)))
    return ProbeRecord(name, slice_, "forced", tokens, tuple(logprobs), tokens if top is None else tuple(top))


def recall(name: str, correct: bool, slice_: str = "facts") -> ProbeRecord:
    """A recall probe."""
    return ProbeRecord(name, slice_, "recall", correct=correct)


def measurement(
    records: Sequence[RequestRecord] = (), probes: Sequence[ProbeRecord] = (), **changes: Any
) -> Measurement:
    """A measurement of ten seconds in the tuning window."""
    values: dict[str, Any] = {
        "config": ServingConfig("bundled", {"model": "m"}, {"max_num_seqs": 8}),
        "purpose": "trial",
        "window": "tune",
        "time_scale": 2.0,
        "duration": 10.0,
        "records": tuple(records),
        "probes": tuple(probes),
        "environment": {"cpu": "test"},
        "seconds": {"replay": 10.0},
    }
    return Measurement(**{**values, **changes})


def checkpoint(directory: Path) -> Path:
    """A model directory with a config.json alone. One token takes 2 layers x 2 (keys, values) x 1 head x 8 values x
    4 bytes = 128 bytes of KV in float32."""
    shape = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 16,
        "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    return directory
