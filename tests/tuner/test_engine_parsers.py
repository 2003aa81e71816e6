"""Deploy files before the parsers of the engines and tools that read them, none of which we wrote.

The engines are no dependencies: VLLM_PYTHON is a Python that has vLLM, SGLANG_PYTHON one that has SGLang (SGLANG_PATH:
a directory with its packages, where they are not its own), LLAMA_SERVER a llama-server. CONTRIBUTING.md says how to get
them. Their words as lists: test_export.py, test_deploy_files.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.fakes import cases
from tests.tuner.test_alerts import FULL, Limits, _rules
from tests.tuner.test_deploy_files import HOSTILE, NGRAM, SPECULATIVE, _arguments, _export
from tests.tuner.test_guard_rails import HELD, switched_on
from tuner.serving.export.files import ENGINES

VLLM_PYTHON = os.environ.get("VLLM_PYTHON", "")
SGLANG_PATH = os.environ.get("SGLANG_PATH", "")
SGLANG_PYTHON = os.environ.get("SGLANG_PYTHON") or (VLLM_PYTHON if SGLANG_PATH else "")
LLAMA_SERVER = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server") or ""
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": ""}

RAILS = "guard rails, switched on"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "a draft model": SPECULATIVE,
    "n-grams": NGRAM,
    "everything else": {
        "kv_cache_dtype": "fp8_e4m3", "prefill_chunk_size": 64, "max_queued_requests": 16, "max_queued_tokens": 4096,
        "scheduling_policy": "priority", "watermark": 0.01, "block_size": 32, "enable_prefix_caching": True,
        "kv_cache_memory_bytes": 2**30, "speculation_adaptive": True, **SPECULATIVE,
    },
    "int8": {"kv_cache_dtype": "int8", "kv_window": 124, "dtype": "bfloat16"},
    "a budget that is no number of pages": {"max_num_batched_tokens": 271},
    "a name with a colon": {"name": "llama3:8b"},
    "a budget below a page": {"max_num_batched_tokens": 20, "block_size": 32},
    RAILS: {"held": HELD, **SPECULATIVE},
}  # fmt: skip

VLLM_PARSER = """
import json, sys
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
for file in sys.argv[1:]:
    print("parsed " + json.dumps(vars(parser.parse_args(["serve", "--config", file])), default=str))
"""
SGLANG_PARSER = """
import argparse, importlib.machinery, json, sys
from unittest.mock import MagicMock
import torch
for name in ("nms", "qnms"):
    torch.library.define("torchvision::" + name, "(Tensor dets, Tensor scores, float threshold) -> Tensor")
for name in ("torchvision", "torchvision.io", "torchvision.transforms"):  # its wheel on PyPI needs CUDA
    sys.modules[name] = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
from sglang.srt.arg_groups.validation_hook import check_server_args
from sglang.srt.server_args import ServerArgs
from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
for file in sys.argv[1:]:
    words = ConfigArgumentMerger(parser).merge_config_with_args(["--config", file])
    found = parser.parse_args(words)
    check_server_args(ServerArgs.from_cli_args(found))  # what fits together, and what would be taken back
    print("parsed " + json.dumps(vars(found), default=str))
"""


def _needs(path: str, what: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path or not Path(path).exists(), reason=f"no {what} ({path or 'not named'})")


def _parsed(python: str, program: str, target: str, tmp_path: Path, **environment: str) -> dict[str, dict[str, Any]]:
    """The file of each configuration as the engine's own parser reads it, by one process for all."""
    files = {name: _export(target, tmp_path / str(i), **c)[0] for i, (name, c) in enumerate(CONFIGURATIONS.items())}
    files[RAILS].write_text(switched_on(files[RAILS].read_text("utf-8")), "utf-8")
    command = [python, "-c", program, *map(str, files.values())]
    done = subprocess.run(command, env={**os.environ, **OFFLINE, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line.removeprefix("parsed ")) for line in done.stdout.splitlines() if line.startswith("parsed ")]
    for name, path, found in zip(files, files.values(), told, strict=True):
        for flag, value in yaml.safe_load(path.read_text("utf-8")).items():
            assert flag.removeprefix("no-").replace("-", "_") in found, f"{name}: {flag} = {value!r} was lost"
    return dict(zip(files, told, strict=True))


@_needs(VLLM_PYTHON, "VLLM_PYTHON")
def test_vllm_parses_its_file(tmp_path: Path) -> None:
    found = _parsed(VLLM_PYTHON, VLLM_PARSER, "vllm", tmp_path, PYTHONPATH="")
    plain, rest = found["defaults"], found["everything else"]
    assert (plain["max_num_seqs"], plain["max_num_batched_tokens"], plain["max_model_len"]) == (8, 256, 2048)
    assert plain["enable_prefix_caching"] is False and plain["speculative_config"] is None
    assert found["int8"]["kv_cache_dtype"] == "int8_per_token_head" and found["int8"]["dtype"] == "bfloat16"
    assert found["n-grams"]["speculative_config"]["method"] == "ngram"
    assert rest["speculative_config"]["num_speculative_tokens"] == 3 and rest["enable_prefix_caching"] is True
    assert (rest["kv_cache_memory_bytes"], rest["block_size"], rest["watermark"]) == (2**30, 32, 0.01)
    assert found[RAILS]["max_num_queued_reqs"] == 33
    assert rest["scheduling_policy"] == "priority" and rest["served_model_name"] == ["mini"]


@_needs(SGLANG_PYTHON, "SGLANG_PYTHON")
def test_sglang_parses_its_file(tmp_path: Path) -> None:
    found = _parsed(SGLANG_PYTHON, SGLANG_PARSER, "sglang", tmp_path, PYTHONPATH=SGLANG_PATH)
    plain, rest = found["defaults"], found["everything else"]
    assert (plain["max_running_requests"], plain["chunked_prefill_size"], plain["context_length"]) == (8, 256, 2048)
    assert plain["disable_radix_cache"] is True and rest["disable_radix_cache"] is False
    assert found["n-grams"]["speculative_algorithm"] == "NGRAM"
    assert found[RAILS]["max_queued_requests"] == 25
    assert found["a budget that is no number of pages"]["chunked_prefill_size"] == 16 * 16
    assert plain["enable_mixed_chunk"] is True and rest["enable_mixed_chunk"] is False
    assert found["a name with a colon"]["served_model_name"] == "llama3-8b"
    assert found["n-grams"]["speculative_ngram_max_bfs_breadth"] == 1, "more need pages of one token"
    assert (rest["speculative_algorithm"], rest["speculative_num_draft_tokens"]) == ("STANDALONE", 4)
    assert (rest["kv_cache_dtype"], rest["page_size"], rest["max_queued_requests"]) == ("fp8_e4m3", 32, 16)


@_needs(LLAMA_SERVER, "LLAMA_SERVER")
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_llama_server_parses_its_flags(tmp_path: Path, name: str) -> None:
    """It reads all of its command line before it looks for the model: "failed to load model" is past the parser."""
    (script,) = _export("llamacpp", tmp_path, **CONFIGURATIONS[name])
    environment = {**os.environ, "LLAMA_SERVER": LLAMA_SERVER, "LD_LIBRARY_PATH": str(Path(LLAMA_SERVER).parent)}
    done = subprocess.run(["sh", str(script), "--port", "0"], env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert "error while handling argument" not in said and "invalid argument" not in said, said
    assert "has been removed" not in said and "failed to load model" in said, said
    known = subprocess.run([LLAMA_SERVER, "--help"], env=environment, capture_output=True, text=True).stdout
    flags = {word for word in _arguments(script) if word.startswith("--")}
    assert flags <= set(re.findall(r"--[a-z0-9-]+", known))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mini", HOSTILE[1]])
def test_systemd_reads_the_unit_without_a_word(tmp_path: Path, engine: str, name: str) -> None:
    *_, unit = _export("systemd", tmp_path, engine=engine, name=name)
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("engine", ENGINES)
def test_compose_is_of_the_specification(tmp_path: Path, engine: str, device: str) -> None:
    """Oracle: compose_spec, a strict parser of the Compose Specification."""
    compose_spec = pytest.importorskip("compose_spec", reason="pip install -c constraints.txt -e '.[dev]'")
    *_, path = _export("compose", tmp_path, engine=engine, device=device, **SPECULATIVE)
    text = path.read_text("utf-8")
    assert compose_spec.PyCompose.from_yaml(text).service_names() == ["engine"]
    with pytest.raises(ValueError, match="stop_grace"):
        compose_spec.PyCompose.from_yaml(text.replace("stop_grace_period", "stop_grace"))


@pytest.mark.parametrize("engine", ["engine", "vllm"])
@pytest.mark.parametrize("limits", [FULL, Limits(3.0)], ids=["all of them", "the rate alone"])
def test_prometheus_parses_the_rules(engine: str, limits: Limits) -> None:
    """Oracle: promql_parser, compatible with Prometheus' own."""
    promql_parser = pytest.importorskip("promql_parser", reason="pip install -c constraints.txt -e '.[dev]'")
    for rule in _rules(limits, engine):
        parsed = promql_parser.parse(rule["expr"])
        comparison = {"==", "!=", ">", "<", ">=", "<="}
        assert "alert" not in rule or any(sign in str(parsed) for sign in comparison), "an alert without a condition"
    with pytest.raises(ValueError, match="unclosed"):
        promql_parser.parse(rule["expr"] + "(")


MODEL: dict[str, Any] = {
    "name": {"type": "string"}, "repository": {"type": "string"}, "tag": {"type": "string"},
    "modelURL": {"type": "string"}, "replicaCount": {"type": "integer"},
    "requestCPU": {"type": ["integer", "number", "string"]}, "requestMemory": {"type": "string"},
    "requestGPU": {"type": ["integer", "number", "string"]},
    "vllmConfig": {"type": "object", "additionalProperties": False,
                   "properties": {"enablePrefixCaching": {"type": "boolean"},
                                  "extraArgs": {"type": "array", "items": {"type": "string"}}}},
    "extraVolumes": {"type": "array"}, "extraVolumeMounts": {"type": "array"},
}  # fmt: skip
CHART: dict[str, Any] = {
    "type": "object", "additionalProperties": False, "required": ["servingEngineSpec"],
    "properties": {"servingEngineSpec": {
        "type": "object", "additionalProperties": False,
        "properties": {"runtimeClassName": {"type": "string"}, "modelSpec": {"type": "array", "minItems": 1, "items": {
            "type": "object", "additionalProperties": False, "required": sorted(MODEL), "properties": MODEL}}},
    }},
}  # fmt: skip
"""The part that we write of helm/values.schema.json of vllm-project/production-stack; written by hand."""


@pytest.mark.parametrize("changes", cases(CONFIGURATIONS.items()))
def test_helm_values_are_of_the_chart(tmp_path: Path, changes: dict[str, Any]) -> None:
    *_, path = _export("helm-values", tmp_path, device="cuda", **changes)
    jsonschema.validate(yaml.safe_load(path.read_text("utf-8")), CHART)
