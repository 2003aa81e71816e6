"""Quantised weights against the dense matrices that their codes mean, by transformers where a whole model is asked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import packers
import pytest
import torch
import torch.nn.functional as F
from packers import Array, Tensors, quantise, write_packed
from tiny_models import PROMPT, edit_config, greedy, transformers_greedy, write_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.kernels.reference import PagedTensor
from engine.layers.linear import Linear
from engine.layers.quantization import quantize_int4, quantize_int8
from engine.memory import plan_memory
from engine.model_runner import load_engine
from engine.models.config import ModelConfig, read_model_config
from engine.models.decoder import Decoder
from engine.models.size import weight_bytes

GROUP = 32


@dataclass(frozen=True)
class Packed:
    """A kind of checkpoint. layout: "gptq", "awq", "pack-quantized" or "int-quantized"; group None: a whole row.

    dense: part of the names of layers that stay dense. keys: added to quantization_config.
    """

    layout: str
    bits: int
    group: int | None
    symmetric: bool
    shuffled: bool = False
    dense: str | None = None
    keys: tuple[tuple[str, Any], ...] = ()

    def config(self) -> dict[str, Any]:
        keys = dict(self.keys)
        if self.layout in ("gptq", "awq"):
            common = {"quant_method": self.layout, "bits": self.bits, "group_size": self.group or -1}
            skipped = [self.dense] if self.dense else None
            own = {"sym": self.symmetric, "desc_act": self.shuffled, "lm_head": False}
            return common | (own if self.layout == "gptq" else {"modules_to_not_convert": skipped}) | keys
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, "dynamic": False}
        weights |= {"strategy": "group" if self.group else "channel", "group_size": self.group, "actorder": None}
        group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
        return {
            "quant_method": "compressed-tensors",
            "format": self.layout,
            "quantization_status": "compressed",
            "kv_cache_scheme": None,
            "ignore": ["lm_head", *([f"re:.*{self.dense}"] if self.dense else [])],
            "config_groups": {"group_0": group | keys},
        }

    def pack(self, name: str, matrix: Array) -> tuple[Tensors, Array] | None:
        if self.dense is not None and self.dense in name:
            return None
        # gate and up share an order and fuse; q, k and v have orders of their own and must not.
        shuffled_by = name.replace("gate", "up") if self.shuffled else None
        q = quantise(matrix, self.bits, self.group or matrix.shape[1], self.symmetric, shuffled_by)
        match self.layout:
            case "gptq":
                offset = 0 if dict(self.keys).get("checkpoint_format") == "gptq_v2" else 1
                return packers.gptq(q, offset), q.dense
            case "awq":
                return packers.awq(q), q.dense
            case "pack-quantized":
                return packers.pack_quantized(q, self.symmetric), q.dense
        return packers.int_quantized(q, self.symmetric), q.dense


V2 = (("checkpoint_format", "gptq_v2"),)
CHECKPOINTS = {
    "GPTQ, 4 bits, symmetric": Packed("gptq", 4, GROUP, symmetric=True),
    "GPTQ, 4 bits, zero points of 0 included": Packed("gptq", 4, GROUP, symmetric=False),
    "GPTQ, second format of zero points": Packed("gptq", 4, GROUP, symmetric=False, keys=V2),
    "GPTQ, inputs grouped by activation order": Packed("gptq", 4, GROUP, symmetric=False, shuffled=True),
    "GPTQ, 8 bits, symmetric": Packed("gptq", 8, GROUP, symmetric=True),
    "GPTQ, 8 bits with zero points": Packed("gptq", 8, GROUP, symmetric=False, shuffled=True),
    "GPTQ, one group a row": Packed("gptq", 4, None, symmetric=True),
    "AWQ": Packed("awq", 4, GROUP, symmetric=False),
    "AWQ that leaves a layer dense": Packed("awq", 4, GROUP, symmetric=False, dense="k_proj"),
    "pack-quantized, 4 bits": Packed("pack-quantized", 4, GROUP, symmetric=True),
    "pack-quantized, 4 bits with zero points": Packed("pack-quantized", 4, GROUP, symmetric=False),
    "pack-quantized, 8 bits, one scale a row": Packed("pack-quantized", 8, None, symmetric=True),
    "pack-quantized that ignores a pattern": Packed("pack-quantized", 4, GROUP, symmetric=True, dense="up_proj"),
    "int-quantized": Packed("int-quantized", 8, None, symmetric=True),
    "int-quantized with zero points": Packed("int-quantized", 8, None, symmetric=False),
    "int-quantized with activations quantised on the fly": Packed(
        "int-quantized", 8, None, symmetric=True, keys=(("input_activations", {"num_bits": 8, "dynamic": True}),)
    ),
}


@pytest.fixture(scope="module")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases, which packed layers keep dense."""
    return write_model(tmp_path_factory.mktemp("tiny-qwen"), "qwen2", seed=5)


def assert_equals_transformers(packed: EngineConfig, dense: Path, seen_logits: list[torch.Tensor]) -> None:
    oracle = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    expected = transformers_greedy(oracle)
    with torch.inference_mode():
        logits = oracle(torch.tensor([PROMPT + expected])).logits[0, len(PROMPT) - 1 : -1]
    assert greedy(load_engine(packed)) == expected
    assert torch.allclose(torch.cat(seen_logits), logits, atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("kind", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_packed_checkpoints_equal_their_dense_twins(
    kind: Packed, tiny_qwen: Path, tmp_path: Path, seen_logits: list[torch.Tensor]
) -> None:
    packed, dense = write_packed(tiny_qwen, tmp_path, kind.config(), kind.pack)
    assert_equals_transformers(EngineConfig(model=str(packed)), dense, seen_logits)
    seen_logits.clear()
    assert_equals_transformers(EngineConfig(model=str(packed), weight_dtype="float32"), dense, seen_logits)


def int8_twin(name: str, matrix: Array) -> tuple[Tensors, Array]:
    q = quantise(matrix, 8, matrix.shape[1], symmetric=True)
    scales = np.abs(matrix).max(1, keepdims=True) / 127
    return packers.int_quantized(q, True), np.round(matrix / scales).astype(np.float32) * scales


def int4_twin(name: str, matrix: Array) -> tuple[Tensors, Array]:
    groups = matrix.reshape(len(matrix), -1, GROUP)
    low = np.minimum(groups.min(-1, keepdims=True), 0)
    scales = (np.maximum(groups.max(-1, keepdims=True), 0) - low) / np.float32(15)
    zeros = np.round(-low / scales)
    codes = np.clip(np.round(groups / scales + zeros), 0, 15)
    return {}, ((codes - zeros) * scales).reshape(matrix.shape)


def bfloat16_twin(name: str, matrix: Array) -> tuple[Tensors, Array]:
    return {}, torch.from_numpy(matrix).bfloat16().float().numpy()


@pytest.mark.parametrize(
    ("weight_dtype", "twin"), [("int8", int8_twin), ("int4", int4_twin), ("bfloat16", bfloat16_twin)]
)
def test_quantised_at_load_equals_the_dense_twin(
    weight_dtype: Any, twin: Any, tiny_qwen: Path, tmp_path: Path, seen_logits: list[torch.Tensor]
) -> None:
    _, dense = write_packed(tiny_qwen, tmp_path, {}, twin)
    config = EngineConfig(model=str(tiny_qwen), weight_dtype=weight_dtype, weight_group_size=GROUP)
    assert_equals_transformers(config, dense, seen_logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_product_is_that_of_the_dequantised_matrix(bits: int, rows: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(bits + rows)
    weight, x = torch.randn(48, 128, generator=generator), torch.randn(rows, 128, generator=generator).to(dtype)
    quantized = quantize_int8(weight) if bits == 8 else quantize_int4(weight, 64)
    meant = quantized.dense(torch.float32)
    step = quantized.scales.repeat_interleave(128 // quantized.scales.shape[1], 1)
    assert ((meant - weight).abs() <= step * 1.001 / (2 if bits == 8 else 1)).all(), "no code is further than a step"
    expected = x.float() @ meant.T
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    found = Linear([quantized], None, dtype)(x)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("shapes", [[(64, 32)], [(130, 50), (7, 50)]], ids=["one", "two of odd sizes"])
@pytest.mark.parametrize("rows", [0, 1, 7, 33])
def test_a_blocked_matrix_gives_the_product_of_the_plain_one(rows: int, shapes: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    plain = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    x = torch.randn(rows, shapes[0][1], generator=generator).bfloat16()
    bias = torch.randn(sum(outputs for outputs, _ in shapes), generator=generator).bfloat16()
    expected = F.linear(x.float(), torch.cat(plain).float(), bias.float())
    assert torch.allclose(Linear(plain, bias, torch.bfloat16)(x).float(), expected, rtol=1e-2, atol=1e-2)


def tensors_of(decoder: Decoder) -> Iterator[torch.Tensor]:
    yield from (decoder.embedding, decoder.norm.weight)
    yield from (t for t in decoder.head.tensors() if t is not decoder.embedding)
    for block in decoder.blocks:
        yield from (block.norm.weight, block.mlp_norm.weight)
        if block.qk_norm is not None:
            yield block.qk_norm.weight
        for linear in (block.qkv, block.out, block.gate_up, block.down):
            yield from linear.tensors()


def load_remembering(monkeypatch: pytest.MonkeyPatch, config: EngineConfig) -> tuple[list[Decoder], list[PagedTensor]]:
    """The models and the pages behind an engine."""
    decoders: list[Decoder] = []
    pages: list[PagedTensor] = []
    build, allocate = Decoder.__init__, PagedTensor.empty

    def remember(self: Decoder, *args: Any) -> None:
        build(self, *args)
        decoders.append(self)

    def remember_pages(*args: Any) -> PagedTensor:
        pages.append(allocate(*args))
        return pages[-1]

    monkeypatch.setattr(Decoder, "__init__", remember)
    monkeypatch.setattr(PagedTensor, "empty", staticmethod(remember_pages))
    load_engine(config)
    return decoders, pages


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def loaded_bytes(monkeypatch: pytest.MonkeyPatch, config: EngineConfig) -> int:
    """Bytes of the storages behind the weights of the model that an engine loads."""
    (decoder,), _ = load_remembering(monkeypatch, config)
    return storage_bytes(tensors_of(decoder))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="no guesses: the draft's weights, not its pages"),
        pytest.param({"num_speculative_tokens": 3}, id="guesses"),
        pytest.param({"num_speculative_tokens": 3, "weight_dtype": "int8", "kv_cache_dtype": "int8"}, id="int8"),
        pytest.param({"weight_dtype": "int4", "kv_cache_dtype": "int4", "weight_group_size": 32}, id="int4"),
        pytest.param({"num_speculative_tokens": 3, "kv_cache_dtype": "bfloat16"}, id="bfloat16 pages"),
    ],
)
def test_the_whole_plan_is_what_is_allocated(
    settings: dict[str, Any], tiny_llama: Path, tiny_draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"model": str(tiny_llama), "draft_model": str(tiny_draft)}
    config = EngineConfig(**models, kv_cache_memory_bytes=3_000_000, **settings)
    plan = plan_memory(config)
    (target, draft), pages = load_remembering(monkeypatch, config)
    assert plan.weight_bytes == storage_bytes(tensors_of(target))
    assert plan.draft_weight_bytes == storage_bytes(tensors_of(draft))
    tensors = [t for page in pages for t in (page.data, page.scales) if t is not None]
    assert plan.pool.pool_bytes == storage_bytes(tensors)
    assert plan.total_bytes == plan.weight_bytes + plan.draft_weight_bytes + plan.pool.pool_bytes


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("weight_dtype", ["auto", "bfloat16", "int8", "int4"])
def test_weights_take_the_bytes_that_were_planned(
    weight_dtype: Any, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_model(tmp_path, family, tie_word_embeddings=family == "qwen3", head_dim=16)
    planned = weight_bytes(read_model_config(directory), "float32", weight_dtype, 64)
    assert loaded_bytes(monkeypatch, EngineConfig(model=str(directory), weight_dtype=weight_dtype)) == planned
    assert weight_dtype == "auto" or planned < weight_bytes(read_model_config(directory), "float32", "auto", 64)


@pytest.mark.parametrize("name", ["GPTQ, 4 bits, symmetric", "AWQ that leaves a layer dense", "int-quantized"])
def test_packed_weights_stay_packed(
    name: str, tiny_qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, _ = write_packed(tiny_qwen, tmp_path, CHECKPOINTS[name].config(), CHECKPOINTS[name].pack)
    planned = weight_bytes(read_model_config(packed), "float32", "auto", 64)
    assert loaded_bytes(monkeypatch, EngineConfig(model=str(packed))) == planned


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
GPTQ, AWQ = CHECKPOINTS["GPTQ, 4 bits, symmetric"].config(), CHECKPOINTS["AWQ"].config()
CT = CHECKPOINTS["pack-quantized, 4 bits"].config()
CT_GROUP = CT["config_groups"]["group_0"]


def ct(**changes: Any) -> dict[str, Any]:
    return {**CT, "config_groups": {"group_0": {**CT_GROUP, **changes}}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method: expected gptq or awq or compressed-tensors, given 'bitsand"),
        ({**GPTQ, "bits": 3}, "bits: expected 4 or 8, given 3"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format: expected gptq or gptq_v2, given 'marlin'"),
        ({**GPTQ, "group_size": 0}, "group_size: expected an even number of inputs, or -1 for all, given 0"),
        ({**GPTQ, "dynamic": {"-:.*": {}}}, "dynamic: expected nothing, given"),
        ({**GPTQ, "lm_head": True}, "lm_head: expected nothing or False, given True"),
        ({**AWQ, "version": "gemv"}, "version: expected gemm, given 'gemv'"),
        ({**AWQ, "bits": 8}, "bits: expected 4, given 8"),
        ({**AWQ, "zero_point": False}, "zero_point: expected True, given False"),
        ({**CT, "format": "float-quantized"}, "format: expected pack-quantized or int-quantized, given 'float-"),
        ({**CT, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme: expected nothing, given"),
        ({**CT, "config_groups": {}}, "config_groups: expected one group, given []"),
        (ct(targets=["re:.*mlp.*"]), "group_0: targets: expected ['Linear'], given"),
        (ct(input_activations={"dynamic": False}), "input_activations: dynamic: expected True, given False"),
        (ct(weights={**CT_GROUP["weights"], "type": "float"}), "weights: type: expected int, given 'float'"),
        (ct(weights={**CT_GROUP["weights"], "strategy": "block"}), "weights: strategy: expected channel or group"),
        (ct(weights={**CT_GROUP["weights"], "actorder": "group"}), "weights: actorder: expected None or False or"),
        (ct(weights=None), "weights: expected an object, given None"),
    ],
)
def test_variants_that_are_not_served_are_refused_in_one_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        ModelConfig.from_json({**TINY, "quantization_config": config}, "config.json")
    assert str(caught.value).startswith("config.json: quantization_config: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "settings", "keys", "message"),
    [
        pytest.param(GPTQ, {"weight_dtype": "int8"}, {}, "weight_dtype: .* is gptq in 4 bits already", id="twice"),
        pytest.param(GPTQ, {"load_format": "dummy"}, {}, "quantization_config: load_format dummy", id="dummy"),
        pytest.param(
            GPTQ, {}, {"group_size": 48}, "q_proj: group_size: 48 does not divide the layer's 64 inputs", id="group"
        ),
        pytest.param(GPTQ, {}, {"bits": 8}, r"q_proj.qweight: expected shape \[16, 64\], found \[8, 64\]", id="bits"),
        pytest.param(
            GPTQ, {}, {"group_size": 64}, r"q_proj.qzeros: expected shape \[1, 8\], found \[2, 8\]", id="fewer groups"
        ),
        pytest.param(CT, {}, {}, r"q_proj.weight_packed: expected a tensor of shape \[64, 8\]", id="other format"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_config_says(
    kind: dict[str, Any],
    settings: dict[str, Any],
    keys: dict[str, Any],
    message: str,
    tiny_qwen: Path,
    tmp_path: Path,
) -> None:
    packed, _ = write_packed(tiny_qwen, tmp_path, GPTQ, CHECKPOINTS["GPTQ, 4 bits, symmetric"].pack)
    edit_config(packed, quantization_config={**kind, **keys})
    with pytest.raises(ValueError, match=message) as caught:
        load_engine(EngineConfig(model=str(packed), **settings))
    assert "\n" not in str(caught.value)


def test_settings_that_the_shapes_cannot_take(tiny_qwen: Path) -> None:
    with pytest.raises(ValueError, match="weight_group_size: 128 does not divide the 64 inputs of .*q_proj"):
        load_engine(EngineConfig(model=str(tiny_qwen), weight_dtype="int4", weight_group_size=128))
    with pytest.raises(ValueError, match="weight_dtype: float32 is wider than the compute dtype"):
        load_engine(EngineConfig(model=str(tiny_qwen), weight_dtype="float32", dtype="bfloat16"))


def test_dummy_weights_need_nothing_but_shapes(tiny_qwen: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_qwen / "config.json").read_text())
    first, again, other, _ = (
        greedy(load_engine(EngineConfig(model=str(tmp_path), load_format="dummy", **settings)))
        for settings in ({}, {}, {"seed": 1}, {"weight_dtype": "int4"})
    )
    assert first == again
    assert first != other
