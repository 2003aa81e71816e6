"""Checkpoints that cannot be served are refused in one line that names the file, the key and what was expected."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import serving
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_models import edit_config

from engine.config import EngineConfig
from engine.model_runner import load_engine

UP = "model.layers.1.mlp.up_proj.weight"


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / "model.safetensors"
        tensors = load_file(file)
        edit(tensors)
        save_file(tensors, file)

    return apply


def cut(size: int) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        file = directory / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return apply


def shard(directory: Path, missing: bool) -> None:
    """Two files with an index, of which the second may be absent."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        if not (missing and "00002-of" in file):
            save_file({name: tensors[name] for name in part}, directory / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no directory": (shutil.rmtree, "config.json: cannot be read: No such file"),
    "no config.json": (lambda d: (d / "config.json").unlink(), "config.json: cannot be read: No such file"),
    "config.json is not JSON": (lambda d: (d / "config.json").write_text("{"), "config.json: not JSON: line 1"),
    "config.json is not text": (lambda d: (d / "config.json").write_bytes(b"\xff"), "config.json: not UTF-8"),
    "another architecture": (lambda d: edit_config(d, model_type="gpt2"), "config.json: model_type: expected one of"),
    "a missing key": (lambda d: edit_config(d, rms_norm_eps=...), "config.json: rms_norm_eps: expected"),
    "no safetensors": (lambda d: (d / "model.safetensors").unlink(), "no *.safetensors file"),
    "a file cut inside its header": (cut(1000), "model.safetensors: not a whole safetensors file"),
    "a file cut inside its data": (cut(100_000), "model.safetensors: not a whole safetensors file"),
    "an empty file": (cut(0), "model.safetensors: not a whole safetensors file"),
    "a missing tensor": (edit_tensors(lambda t: t.pop(UP)), f"{UP}: expected a tensor of shape [128, 64], but it is"),
    "a tensor of a wrong shape": (
        edit_tensors(lambda t: t.update({UP: torch.zeros(64, 128)})),
        f"model.safetensors: {UP}: expected shape [128, 64], found [64, 128]",
    ),
    "a config that means other shapes": (
        lambda d: edit_config(d, num_key_value_heads=4),
        "self_attn.k_proj.weight: expected shape [64, 64], found [32, 64]",
    ),
    "a tensor of a wrong dtype": (
        edit_tensors(lambda t: t.update({UP: torch.zeros(128, 64, dtype=torch.int32)})),
        f"model.safetensors: {UP}: expected float32 or bfloat16 or float16, found int32",
    ),
    "a tensor in float8": (
        edit_tensors(lambda t: t.update({UP: torch.zeros(128, 64).to(torch.float8_e4m3fn)})),
        f"{UP}: expected float32 or bfloat16 or float16, found float8_e4m3fn",
    ),
    "an absent shard": (
        lambda d: shard(d, missing=True),
        "model.safetensors.index.json: weight_map: names model-00002-of-00002.safetensors, which is not there",
    ),
    "an index without a map": (
        lambda d: (d / "model.safetensors.index.json").write_text("{}"),
        "model.safetensors.index.json: weight_map: expected an object",
    ),
}


def damaged(tiny_llama: Path, tmp_path: Path, damage: Callable[[Path], object]) -> Path:
    directory = tmp_path / "model"
    shutil.copytree(tiny_llama, directory)
    damage(directory)
    return directory


@pytest.mark.parametrize(("damage", "message"), CASES.values(), ids=CASES.keys())
def test_refusals(damage: Callable[[Path], object], message: str, tiny_llama: Path, tmp_path: Path) -> None:
    directory = damaged(tiny_llama, tmp_path, damage)
    with pytest.raises(ValueError, match=".") as caught:
        load_engine(EngineConfig(model=str(directory)))
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shards_are_one_checkpoint(tiny_llama: Path, tmp_path: Path) -> None:
    load_engine(EngineConfig(model=str(damaged(tiny_llama, tmp_path, lambda d: shard(d, missing=False)))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(cut(100_000), "model.safetensors: not a whole safetensors file", id="torn weights"),
        pytest.param(lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: no such file", id="no tokenizer"),
    ],
)
def test_the_command_refuses_a_checkpoint_with_status_2(
    damage: Callable[[Path], object], message: str, tiny_llama: Path, tmp_path: Path
) -> None:
    config = tmp_path / "engine.yaml"
    config.write_text(yaml.safe_dump({"model": str(damaged(tiny_llama, tmp_path, damage))}))
    done = subprocess.run(serving.command(config, fake=False), capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


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
