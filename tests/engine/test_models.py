"""Each family against transformers in float32: the same logits and the same greedy tokens through LLMEngine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import OUTPUT, PROMPT, edit_config, greedy, transformers_greedy, write_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.models.config import ModelConfig, read_model_config

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SLIDING = {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 0}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("llama", {}),
    "Llama with biases everywhere": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "Llama whose heads are wider than hidden / heads": ("llama", {"head_dim": 32}),
    "Llama without grouped heads": ("llama", {"num_key_value_heads": 4}),
    "Llama 3's scaled rotary embedding": ("llama", {"rope_parameters": LLAMA3}),
    "linearly scaled rotary embedding": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}},
    ),
    "Mistral without a window": ("mistral", {"sliding_window": None}),
    "Mistral, prompt longer than its window": ("mistral", {"sliding_window": 16}),
    "Qwen2": ("qwen2", {}),
    "Qwen2 with a window in all layers": ("qwen2", SLIDING),
    "Qwen2 that switches its windows on above its last layer": ("qwen2", {**SLIDING, "max_window_layers": 2}),
    "Qwen3": ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3 with biases": ("qwen3", {"head_dim": 16, "attention_bias": True}),
    "Qwen3 with a window in all layers": ("qwen3", {**SLIDING, "head_dim": 16}),
}


@pytest.mark.parametrize(("family", "keys"), MODELS.values(), ids=MODELS.keys())
def test_logits_and_greedy_tokens_equal_transformers(
    family: str, keys: dict[str, Any], tmp_path: Path, seen_logits: list[torch.Tensor]
) -> None:
    directory = write_model(tmp_path, family, **keys)
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    expected = transformers_greedy(oracle)
    with torch.inference_mode():
        logits = oracle(torch.tensor([PROMPT + expected])).logits[0, len(PROMPT) - 1 : -1]
    assert greedy(load_engine(EngineConfig(model=str(directory), block_size=4, prefill_chunk_size=37))) == expected
    assert torch.allclose(torch.cat(seen_logits), logits, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("kv_window", "sinks", "rule"),
    [
        pytest.param(None, 4, (16, 0), id="the model's window alone has no sinks"),
        pytest.param(200, 4, (16, 0), id="a wider kv_window changes nothing, sinks included"),
        pytest.param(16, 4, (16, 0), id="nor does one as wide"),
        pytest.param(9, 3, (9, 3), id="a narrower one rules, with its sinks"),
    ],
)
@pytest.mark.parametrize("depth", [0, 3])
def test_of_two_windows_the_smaller_rules(
    kv_window: int | None, sinks: int, rule: tuple[int, int], depth: int, tiny_draft: Path, tmp_path: Path
) -> None:
    directory = write_model(tmp_path, "mistral", sliding_window=16)
    oracle = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    engine = load_engine(
        EngineConfig(
            model=str(directory),
            draft_model=str(tiny_draft),
            num_speculative_tokens=depth,
            kv_window=kv_window,
            kv_sink_tokens=sinks,
            block_size=4,
        )
    )
    assert greedy(engine) == dense_greedy(oracle, PROMPT, *rule)
    # 120 tokens are 30 pages; a window of 16 straddles at most 5 and speculation lags by a few tokens.
    assert engine.stats().evicted_blocks >= 23


def dense_greedy(model: PreTrainedModel, ids: list[int], window: int, sinks: int) -> list[int]:
    """Greedy tokens under an explicit mask: k <= q and (k > q - window or k < sinks)."""
    ids = list(ids)
    for _ in range(OUTPUT):
        q, k = torch.arange(len(ids)).unsqueeze(1), torch.arange(len(ids)).unsqueeze(0)
        visible = (k <= q) & ((k > q - window) | (k < sinks))
        mask = torch.zeros(visible.shape).masked_fill(~visible, float("-inf"))[None, None]
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids]), attention_mask=mask, use_cache=False).logits[0, -1].argmax()))
    return ids[-OUTPUT:]


def test_a_draft_with_a_window_of_its_own_changes_no_token(tiny_llama: Path, tmp_path: Path) -> None:
    draft = write_model(tmp_path, "mistral", seed=3, layers=1, sliding_window=8)
    plain = load_engine(EngineConfig(model=str(tiny_llama), block_size=4))
    drafted = load_engine(
        EngineConfig(model=str(tiny_llama), draft_model=str(draft), num_speculative_tokens=3, block_size=4)
    )
    assert greedy(drafted) == greedy(plain)
    assert drafted.stats().evicted_blocks == 0, "pages are kept as long as the target sees them"


OLD_ROPE = {**LLAMA3, "type": "llama3"}
del OLD_ROPE["rope_type"], OLD_ROPE["rope_theta"]


@pytest.mark.parametrize(
    "old",
    [
        pytest.param({"rope_scaling": OLD_ROPE, "rope_theta": 10_000.0}, id="rope_scaling with type"),
        pytest.param({"rope_scaling": LLAMA3}, id="rope_scaling with rope_type"),
    ],
)
def test_older_layouts_of_config_json_mean_the_same(old: dict[str, Any], tmp_path: Path) -> None:
    directory = write_model(tmp_path, "llama", rope_parameters=LLAMA3)
    new = read_model_config(directory)
    edit_config(directory, rope_parameters=..., **old)
    assert read_model_config(directory) == new
    assert new.rope.type == "llama3"


TINY = {
    "model_type": "llama",
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}


def test_what_config_json_may_leave_out() -> None:
    config = ModelConfig.from_json(TINY, "config.json")
    assert (config.kv_heads, config.head_dim, config.window) == (4, 16, None)
    assert (config.rope.type, config.rope.theta) == ("default", 10_000.0)
    assert ModelConfig.from_json({**TINY, "model_type": "qwen3"}, "config.json").head_dim == 128
    assert ModelConfig.from_json({**TINY, "model_type": "mistral"}, "config.json").window == 4096


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_moe"}, "model_type: expected one of llama, mistral, qwen2, qwen3, given 'qwen2_moe'"),
        ({"model_type": "qwen2_moe"}, "; the nearest is 'qwen2'"),
        ({"model_type": "xyz"}, "given 'xyz'"),
        ({"model_type": None}, "model_type: expected one of"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "num_local_experts: mixture-of-experts models are not"),
        ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', given 'gelu'"),
        ({"rms_norm_eps": None}, "rms_norm_eps: expected, but not there"),
        ({"hidden_size": "64"}, "hidden_size: expected a positive number, given '64'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers: expected a positive number, given 0"),
        ({"vocab_size": 1.5}, "vocab_size: expected a whole number, given 1.5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide num_attention_heads 4"),
        ({"head_dim": 15}, "head_dim: expected an even number (rotary pairs), found 15"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: rope_type: expected one of default, linear"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling: rope_type: expected one of default, linear, llama3"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: expected, but not there"),
        ({"rope_scaling": 3}, "rope_scaling: expected an object, given 3"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_parameters: one for each kind of layer is not served"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, given 0.5"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
            "layer_types: expected one kind for all layers, found full_attention, sliding_attention",
        ),
        (
            {"model_type": "qwen3", "layer_types": ["full_attention", "linear_attention"]},
            "found full_attention, linear_attention",
        ),
    ],
)
def test_what_is_not_served_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        ModelConfig.from_json({**TINY, **changes}, "config.json")
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
