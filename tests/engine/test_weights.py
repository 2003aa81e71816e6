"""Checkpoints that cannot be served are refused in one line that names the file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.config import EngineConfig
from engine.model_runner import load_engine
from engine.weights import load_model


def edit_config(**changes: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit


def drop_key(directory: Path) -> None:
    file = directory / "config.json"
    values = json.loads(file.read_text())
    del values["rms_norm_eps"]
    file.write_text(json.dumps(values))


def drop_tensor(directory: Path) -> None:
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file)


def truncate(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config.json": (lambda d: (d / "config.json").unlink(), "config.json: cannot be read: No such file"),
    "config.json is not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON: line 1"),
    "another architecture": (edit_config(model_type="gpt2"), "model_type: expected 'llama', given 'gpt2'"),
    "a missing key": (drop_key, "config.json: rms_norm_eps: expected, but not there"),
    "scaled rotary embedding": (edit_config(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}), "rope type"),
    "biases": (edit_config(attention_bias=True), "attention_bias: not supported"),
    "quantised weights": (edit_config(quantization_config={}), "quantization_config: not supported"),
    "no safetensors": (lambda d: (d / "model.safetensors").unlink(), "no *.safetensors file"),
    "a torn safetensors file": (truncate, "model.safetensors: not a safetensors file"),
    "a missing tensor": (drop_tensor, "lacks the tensor model.layers.1.mlp.up_proj.weight"),
}


@pytest.mark.parametrize(("damage", "message"), CASES.values(), ids=CASES.keys())
def test_refusals(damage: Callable[[Path], None], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(tiny_llama, directory)
    damage(directory)
    with pytest.raises(ValueError, match=".") as caught:
        load_model(directory, torch.device("cpu"), torch.float32)
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 4096}, "max_model_len: 4096 exceeds the trained context of 512 tokens"),
        ({"kv_cache_memory_bytes": 100}, "kv_cache_memory_bytes: 100 holds no page; one takes 8192 bytes"),
    ],
)
def test_settings_that_the_model_cannot_take(settings: dict[str, int], message: str, tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_engine(EngineConfig(model=str(tiny_llama), **settings))
