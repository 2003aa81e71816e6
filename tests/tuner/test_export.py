"""Deploy files load where they are meant to load, and say what does not carry over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig, knobs, load_config, parse_config
from tests.tuner.builders import checkpoint
from tests.tuner.test_cli import study_file, tune
from tuner.serving.config import ServingConfig
from tuner.serving.export.files import TARGETS, Provenance, export
from tuner.serving.export.llamacpp import LLAMACPP
from tuner.serving.export.mapping import Row
from tuner.serving.export.sglang import SGLANG
from tuner.serving.export.tensorrt_llm import TENSORRT_LLM
from tuner.serving.export.vllm import VLLM
from tuner.store import Store

PROVENANCE = Provenance(study="demo", trial=17, date="2026-11-21")


def _config(model: Path, **changes: Any) -> ServingConfig:
    settings_ = {"model": str(model), "draft_model": str(model.parent / "draft"), "max_model_len": 2048}
    return ServingConfig("bundled", settings_, {"max_num_seqs": 8, "max_num_batched_tokens": 256, **changes})


def _vllm(tmp_path: Path, config: ServingConfig) -> tuple[dict[str, Any], str]:
    (path,) = export("vllm", config, out=tmp_path / "deploy", model_name="mini", provenance=PROVENANCE)
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text), text


def _comment_of(text: str, knob: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"# {knob} -> ")]
    return line


@pytest.mark.parametrize(
    "rows", [VLLM, SGLANG, TENSORRT_LLM, LLAMACPP], ids=["vllm", "sglang", "tensorrt-llm", "llamacpp"]
)
def test_every_engine_setting_has_exactly_one_row(rows: tuple[Row, ...]) -> None:
    assert sorted(row.knob for row in rows) == sorted(knob.name for knob in knobs())


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(
    values=st.fixed_dictionaries(
        {
            "max_num_seqs": st.integers(1, 4096),
            "max_num_batched_tokens": st.integers(4096, 8192),
            "prefill_chunk_size": st.none() | st.integers(1, 4096),
            "kv_cache_dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16", "fp8_e4m3", "int8"]),
            "kv_cache_memory_bytes": st.integers(1, 2**40),
            "kv_window": st.none() | st.integers(1, 4096),
            "kv_sink_tokens": st.integers(0, 64),
            "num_speculative_tokens": st.integers(0, 16),
            "block_size": st.integers(1, 256),
        }
    )
)
def test_engine_file_loads_to_the_measured_values(tmp_path: Path, values: dict[str, Any]) -> None:
    config = _config(tmp_path / "model", **values)
    (path,) = export("engine", config, out=tmp_path, model_name="mini", provenance=PROVENANCE)
    assert load_config(path) == parse_config(config.values, source="test")


def test_the_exported_bytes_are_those_that_the_measured_engine_was_launched_with(tmp_path: Path) -> None:
    """Oracle: the launch files as the engine's processes found them. Each trial gets a process of its own: num_threads
    cannot be changed in a running one."""
    space = {"parameters": {"num_threads": {"type": "int", "low": 1, "high": 4}}}
    budget = {"trials": 2, "startup_trials": 2, "finalists": 0, "examine": False}
    study = study_file(tmp_path, search_space=space, budget=budget)
    assert tune("run", study, "--out", tmp_path / "runs").exit_code == 0
    launched = {path.read_bytes() for path in (tmp_path / "model").glob("launched-*.yaml")}
    with Store(tmp_path / "runs/fake/study.db", create=False) as store:
        numbers = [trial.number for trial in store.optuna_trials("fake") if trial.state.name == "COMPLETE"]
    assert len(numbers) >= 3
    for number in numbers:
        there = tmp_path / f"trial-{number}"
        done = tune(
            "export", tmp_path / "runs/fake", "--to", "engine", "--out", there, "--trial", str(number), "--force"
        )
        assert done.exit_code == 0, done.stderr
        header, _, body = (there / "engine.yaml").read_bytes().partition(b"\n\n")
        assert body in launched, number
        assert all(line.startswith(b"#") for line in header.splitlines())
    recommended = (tmp_path / "runs/fake/recommended.yaml").read_bytes()
    assert recommended.partition(b"\n\n")[2] in launched


def test_vllm_file_is_yaml_of_long_flags(tmp_path: Path) -> None:
    """The flags are vLLM's own (docs v0.32.0), written out here and not taken from the table under test."""
    flags, _ = _vllm(tmp_path, _config(tmp_path / "m", prefill_chunk_size=64, num_speculative_tokens=3))
    assert flags.keys() == {
        "served-model-name", "model", "load-format", "dtype", "seed", "max-model-len", "max-num-seqs",
        "max-num-batched-tokens", "long-prefill-token-threshold", "scheduling-policy", "watermark", "block-size",
        "kv-cache-dtype", "kv-cache-memory-bytes", "speculative-config", "enable-chunked-prefill",
        "no-enable-prefix-caching",
    }  # fmt: skip
    assert flags["max-model-len"] == 2048
    assert json.loads(flags["speculative-config"]) == {
        "method": "draft_model",
        "model": str(tmp_path / "draft"),
        "num_speculative_tokens": 3,
    }


CASES: list[tuple[str, dict[str, Any], str, str | None, Any, str]] = [
    # what it is about, changes, knob, flag, expected value (None: flag absent), fit
    ("int8 keeps its scale per token and head", {"kv_cache_dtype": "int8"}, "kv_cache_dtype", "kv-cache-dtype",
     "int8_per_token_head", "exact"),
    ("fp8 rounds otherwise", {"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype", "kv-cache-dtype",
     "fp8_per_token_head", "approximate"),
    ("bfloat16 KV is refused by older vLLM", {"kv_cache_dtype": "bfloat16"}, "kv_cache_dtype", "kv-cache-dtype",
     "auto", "approximate"),
    ("bfloat16 KV of a bfloat16 model is auto", {"kv_cache_dtype": "bfloat16", "dtype": "bfloat16"}, "kv_cache_dtype",
     "kv-cache-dtype", "auto", "exact"),
    ("the token budget is the same", {}, "max_num_batched_tokens", "max-num-batched-tokens", 256, "exact"),
    ("no chunk size: no flag", {}, "prefill_chunk_size", "long-prefill-token-threshold", None, "exact"),
    ("a chunk never exceeds the sequence", {"prefill_chunk_size": 5000}, "prefill_chunk_size",
     "long-prefill-token-threshold", 2048, "approximate"),
    ("page sizes that vLLM lacks go to the nearest", {"block_size": 20}, "block_size", "block-size", 16, "approximate"),
    ("ngram speculation keeps its lengths", {"num_speculative_tokens": 2, "speculative_method": "ngram"},
     "prompt_lookup_min", "speculative-config",
     '{"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_min": 2, "prompt_lookup_max": 4}', "approximate"),
    ("prefix caching is the same", {"enable_prefix_caching": True}, "enable_prefix_caching", "enable-prefix-caching",
     True, "exact"),
    ("no prefix caching: vLLM's default is switched off", {}, "enable_prefix_caching", "no-enable-prefix-caching", True,
     "exact"),
    ("int4 rounds otherwise", {"kv_cache_dtype": "int4"}, "kv_cache_dtype", "kv-cache-dtype", "int4_per_token_head",
     "approximate"),
    ("no speculation: no flag", {}, "num_speculative_tokens", "speculative-config", None, "exact"),
    ("priorities are vLLM's own", {"scheduling_policy": "priority"}, "scheduling_policy", "scheduling-policy",
     "priority", "exact"),
    ("fairness has no flag", {"scheduling_policy": "fair"}, "scheduling_policy", "scheduling-policy", None, "none"),
    ("vLLM's cap counts what runs", {"max_queued_requests": 10}, "max_queued_requests", "max-num-queued-reqs", 18,
     "approximate"),
    ("the window has no flag", {"kv_window": 124}, "kv_window", None, None, "none"),
    ("without the window fewer sequences fit: 1 MiB holds 4 of 2048 tokens", {"kv_window": 124,
     "kv_cache_memory_bytes": 2**20}, "max_num_seqs", "max-num-seqs", 4, "approximate"),
    ("a batch that shares the pool shrinks as a sequence grows: from 1 + 20 + 1 pages to 128",
     {"kv_window": 124, "kv_cache_memory_bytes": 2**20, "max_num_seqs": 64, "prefill_chunk_size": 198,
      "max_num_batched_tokens": 512}, "max_num_seqs", "max-num-seqs", 64 * 22 // 128, "approximate"),
    ("without the window all fit", {"kv_window": 124}, "max_num_seqs", "max-num-seqs", 8, "approximate"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "changes", "knob", "flag", "expected", "fit"), CASES, ids=[c[0] for c in CASES])
def test_rules_of_the_vllm_file(
    tmp_path: Path, about: str, changes: dict[str, Any], knob: str, flag: str | None, expected: Any, fit: str
) -> None:
    flags, text = _vllm(tmp_path, _config(checkpoint(tmp_path / "m"), **changes))
    assert flags.get(flag) == expected
    assert f": {fit}. " in _comment_of(text, knob)


def test_a_dropped_window_names_its_consequence(tmp_path: Path) -> None:
    changes = {"kv_window": 252, "kv_sink_tokens": 4, "kv_cache_memory_bytes": 2**20}
    _, text = _vllm(tmp_path, _config(checkpoint(tmp_path / "m"), **changes))
    line = _comment_of(text, "kv_window")
    assert "2048 tokens of KV instead of 256 (8x)" in line
    assert "4 of 8 sequences" in line
    assert "quality is expected no lower" in line


def test_max_model_len_comes_from_thecheckpoint(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text('{"max_position_embeddings": 1024}', encoding="utf-8")
    flags, _ = _vllm(tmp_path, ServingConfig("bundled", {"model": str(tmp_path / "m")}))
    assert flags["max-model-len"] == 1024


@pytest.mark.parametrize("content", [None, "not json", "{}"], ids=["no file", "not JSON", "no such key"])
def test_unknown_model_length_is_the_users_to_set(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json: expected max_position_embeddings"):
        _vllm(tmp_path, ServingConfig("bundled", {"model": str(tmp_path)}))


@pytest.mark.parametrize("target", TARGETS)
def test_header_names_study_trial_and_configuration(tmp_path: Path, target: str) -> None:
    config = _config(tmp_path / "m")
    *_, path = export(target, config, out=tmp_path, model_name="mini", provenance=PROVENANCE)
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    header = second if first == "#!/bin/sh" else first
    assert header == f"# servetune: study demo, trial 17, configuration {config.fingerprint}, 2026-11-21"


@pytest.mark.parametrize(("target", "seed", "model"), [("engine", "seed", "model"), ("vllm", "seed", "model"),
                                                       ("sglang", "random-seed", "model-path")])  # fmt: skip
@pytest.mark.parametrize("hostile", ["a\nseed: 99", "a\r\nseed: 99", "a\x85seed: 99", "a\u2028seed: 99", "'\": {]#"])
def test_names_cannot_add_settings(tmp_path: Path, target: str, seed: str, model: str, hostile: str) -> None:
    provenance = Provenance(study=hostile, trial=1, date=hostile)
    config = _config(tmp_path / f"m{hostile}")
    (path,) = export(target, config, out=tmp_path / "out", model_name=hostile, provenance=provenance)
    loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert loaded[seed] == EngineConfig(model="m").seed
    assert loaded[model] == str(tmp_path / f"m{hostile}")


def test_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean vllm"):
        export("vlm", _config(tmp_path), out=tmp_path, model_name="mini", provenance=PROVENANCE)


def test_a_budget_that_vllm_would_refuse_is_refused_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens: 256 is below max_num_seqs 300"):
        _vllm(tmp_path, _config(tmp_path / "m", max_num_seqs=300))


def test_values_that_are_no_engine_configuration_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_num_seq: unknown setting; did you mean max_num_seqs"):
        export("vllm", _config(tmp_path, max_num_seq=3), out=tmp_path, model_name="mini", provenance=PROVENANCE)
