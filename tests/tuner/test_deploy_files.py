"""SGLang, TensorRT-LLM and llama.cpp files say what was measured in their engines' words; manifests run them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.tuner.builders import checkpoint
from tuner.serving.config import ServingConfig
from tuner.serving.export.files import ENGINES, Provenance, export
from tuner.serving.export.guard_rails import Held
from tuner.serving.export.manifests import MANIFESTS

PROVENANCE = Provenance(study="demo", trial=17, date="2026-11-21")
HOSTILE = ["two words", "a\nb: 1", "$(touch pwned)", "`id`", "quote'\"", "a;b", "%n", "-x", "\u2028"]

# The engines' own words, written out here and not taken from the tables under test.
SGLANG_FLAGS = {
    "served-model-name", "model-path", "dtype", "load-format", "random-seed", "context-length", "max-running-requests",
    "chunked-prefill-size", "schedule-policy", "max-queued-requests", "page-size", "kv-cache-dtype",
    "disable-radix-cache", "enable-mixed-chunk", "speculative-algorithm", "speculative-draft-model-path",
    "speculative-num-steps", "speculative-eagle-topk", "speculative-num-draft-tokens",
    "speculative-ngram-max-bfs-breadth",
    "enable-priority-scheduling", "schedule-low-priority-values-first",
}  # fmt: skip
"""Fields of ServerArgs, sglang 0.5.20 (arg_groups/field_order.py of its wheel)."""
TENSORRT_KEYS: dict[str, set[str]] = {
    "": {"enable_chunked_prefill", "dtype", "max_seq_len", "max_batch_size", "max_num_tokens", "scheduler_config",
         "kv_cache_config", "speculative_config"},
    "scheduler_config": {"capacity_scheduler_policy"},
    "kv_cache_config": {"tokens_per_block", "dtype", "max_gpu_total_bytes", "max_attention_window",
                        "sink_token_length", "enable_block_reuse"},
    "speculative_config": {"decoding_type", "max_draft_len", "speculative_model", "max_matching_ngram_size",
                           "acceptance_rate_window_size", "acceptance_rate_threshold"},
}  # fmt: skip
"""Arguments of tensorrt_llm/llmapi/llm_args.py, 1.3."""
LLAMACPP_FLAGS = {
    "--alias", "--model", "--threads", "--seed", "--ctx-size", "--parallel", "--batch-size", "--ubatch-size",
    "--cache-type-k", "--cache-type-v", "--cache-prompt", "--no-cache-prompt", "--flash-attn", "--no-context-shift",
    "--metrics", "--spec-type", "--spec-draft-model", "--spec-draft-n-max", "--spec-ngram-simple-size-n",
    "--spec-ngram-simple-size-m",
}  # fmt: skip
"""tools/server/README.md of llama.cpp 0c1e570."""
SPECULATIVE = {"num_speculative_tokens": 3}
FALLBACK = {"speculation_adaptive": True, "speculation_min_acceptance": 0.4, **SPECULATIVE}
NGRAM = {"num_speculative_tokens": 3, "speculative_method": "ngram"}


def _config(model: Path, **changes: Any) -> ServingConfig:
    settings = {"model": str(checkpoint(model)), "draft_model": str(model.parent / "draft"), "max_model_len": 2048}
    return ServingConfig("bundled", settings, {"max_num_seqs": 8, "max_num_batched_tokens": 256, **changes})


def _export(
    target: str,
    tmp_path: Path,
    engine: str | None = None,
    name: str = "mini",
    held: Held | None = None,
    on_gpu: bool = True,
    **changes: Any,
) -> list[Path]:
    return export(
        target,
        _config(tmp_path / "m", **changes),
        out=tmp_path / "out",
        model_name=name,
        provenance=PROVENANCE,
        engine=engine,
        held=held,
        on_gpu=on_gpu,
    )


def _loaded(target: str, tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], str]:
    (path,) = _export(target, tmp_path, **changes)
    text = path.read_text(encoding="utf-8")
    return yaml.safe_load(text), text


def _arguments(script: Path) -> list[str]:
    """What llama-server would be given, by a shell that runs the script with a stand-in for it."""
    stand_in = script.parent / "llama-server"
    stand_in.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stand_in.chmod(0o700)
    environment = {**os.environ, "LLAMA_SERVER": str(stand_in)}
    shown = subprocess.run(["sh", str(script), "--port", "1"], env=environment, capture_output=True, check=True)
    return shown.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("changes", [{}, SPECULATIVE, NGRAM, FALLBACK,
                                     {"scheduling_policy": "priority", "max_queued_requests": 4}])  # fmt: skip
def test_only_words_that_the_engines_know(tmp_path: Path, changes: dict[str, Any]) -> None:
    sglang, _ = _loaded("sglang", tmp_path, **changes)
    assert sglang.keys() <= SGLANG_FLAGS
    tensorrt, _ = _loaded("tensorrt-llm", tmp_path, **changes)
    assert tensorrt.keys() <= TENSORRT_KEYS[""]
    for key, value in tensorrt.items():
        assert not isinstance(value, dict) or value.keys() <= TENSORRT_KEYS[key]
    (script,) = _export("llamacpp", tmp_path, **changes)
    assert {word for word in _arguments(script) if word.startswith("--")} <= LLAMACPP_FLAGS | {"--port"}


CASES: list[tuple[str, str, dict[str, Any], str, Any, str]] = [
    # what it is about, target, changes, flag, expected value, "knob: fit"
    ("the budget bounds prompts only", "sglang", {}, "chunked-prefill-size", 256,
     "max_num_batched_tokens: approximate"),
    ("in whole pages, or SGLang does not start", "sglang", {"max_num_batched_tokens": 271}, "chunked-prefill-size", 256,
     "max_num_batched_tokens: approximate"),
    ("one page at least", "sglang", {"max_num_batched_tokens": 20, "block_size": 32}, "chunked-prefill-size", 32,
     "max_num_batched_tokens: approximate"),
    ("n-grams on one branch", "sglang", NGRAM, "speculative-ngram-max-bfs-breadth", 1,
     "speculative_method: approximate"),
    ("fcfs is not SGLang's default", "sglang", {}, "schedule-policy", "fcfs", "scheduling_policy: exact"),
    ("SGLang has no fairness", "sglang", {"scheduling_policy": "fair"}, "schedule-policy", "fcfs",
     "scheduling_policy: none"),
    ("SGLang has no int8 KV", "sglang", {"kv_cache_dtype": "int8"}, "kv-cache-dtype", "auto", "kv_cache_dtype: none"),
    ("SGLang's fp8 has other scales", "sglang", {"kv_cache_dtype": "fp8_e4m3"}, "kv-cache-dtype", "fp8_e4m3",
     "kv_cache_dtype: approximate"),
    ("a draft model is STANDALONE", "sglang", SPECULATIVE, "speculative-algorithm", "STANDALONE",
     "speculative_method: exact"),
    ("one branch drafts depth + 1", "sglang", SPECULATIVE, "speculative-num-draft-tokens", 4,
     "num_speculative_tokens: exact"),
    ("without the window 4 sequences of 2048 tokens fit 1 MiB", "sglang",
     {"kv_window": 124, "kv_cache_memory_bytes": 2**20}, "max-running-requests", 4, "max_num_seqs: approximate"),
    ("TensorRT-LLM has the window; it counts the sinks", "tensorrt-llm", {"kv_window": 124, "kv_sink_tokens": 4},
     "kv_cache_config.max_attention_window", [128], "kv_window: exact"),
    ("the pool is bytes on both sides", "tensorrt-llm", {"kv_cache_memory_bytes": 4096},
     "kv_cache_config.max_gpu_total_bytes", 4096, "kv_cache_memory_bytes: exact"),
    ("sequences keep their number beside a window", "tensorrt-llm", {"kv_window": 124}, "max_batch_size", 8,
     "max_num_seqs: exact"),
    ("a draft model has TensorRT-LLM's word", "tensorrt-llm", SPECULATIVE, "speculative_config.decoding_type",
     "Draft_Target", "speculative_method: exact"),
    ("TensorRT-LLM stops guessing for good", "tensorrt-llm", FALLBACK, "speculative_config.acceptance_rate_threshold",
     0.4, "speculation_min_acceptance: approximate"),
    ("pages are powers of two", "tensorrt-llm", {"block_size": 20}, "kv_cache_config.tokens_per_block", 16,
     "block_size: approximate"),
    ("preemption as measured", "tensorrt-llm", {}, "scheduler_config.capacity_scheduler_policy", "MAX_UTILIZATION",
     "scheduling_policy: exact"),
]  # fmt: skip


@pytest.mark.parametrize(("about", "target", "changes", "flag", "expected", "fit"), CASES, ids=[c[0] for c in CASES])
def test_rules(
    tmp_path: Path, about: str, target: str, changes: dict[str, Any], flag: str, expected: Any, fit: str
) -> None:
    loaded, text = _loaded(target, tmp_path, **changes)
    for part in flag.split("."):
        loaded = loaded[part]
    assert loaded == expected
    knob, _, level = fit.partition(": ")
    (line,) = [line for line in text.splitlines() if line.startswith(f"# {knob} -> ")]
    assert f": {level}. " in line


def test_sglang_is_not_told_to_mix_what_it_would_not(tmp_path: Path) -> None:
    """supports_mixed_chunk of sglang 0.5.20: neither STANDALONE nor NGRAM."""
    for changes, mixed in (({}, True), (SPECULATIVE, False), (NGRAM, False)):
        loaded, text = _loaded("sglang", tmp_path / str(len(changes)), **changes)
        assert loaded.get("enable-mixed-chunk", False) is mixed and "# enable-mixed-chunk: " in text


LLAMACPP_CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("the context is the sum over the slots", {}, "--ctx-size", str(8 * 2048)),
    ("without the window fewer slots", {"kv_window": 124, "kv_cache_memory_bytes": 2**20}, "--parallel", "4"),
    ("a chunk is the physical batch", {"prefill_chunk_size": 64}, "--ubatch-size", "64"),
    ("values are stored as the keys", {"kv_cache_dtype": "int8"}, "--cache-type-v", "q8_0"),
    ("depth of a draft model", SPECULATIVE, "--spec-draft-n-max", "3"),
    ("n-grams need no draft model", NGRAM, "--spec-type", "ngram-simple"),
    ("n-grams guess as many as measured, not 48", NGRAM, "--spec-ngram-simple-size-m", "3"),
]


@pytest.mark.parametrize(("about", "changes", "flag", "expected"), LLAMACPP_CASES, ids=[c[0] for c in LLAMACPP_CASES])
def test_rules_of_llamacpp(tmp_path: Path, about: str, changes: dict[str, Any], flag: str, expected: str) -> None:
    (script,) = _export("llamacpp", tmp_path, **changes)
    words = _arguments(script)
    assert words[words.index(flag) + 1] == expected
    assert words[-2:] == ["--port", "1"], "the caller's own options come last and win"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_one_word_of_the_script(tmp_path: Path, name: str) -> None:
    (script,) = _export("llamacpp", tmp_path, name=name)
    words = _arguments(script)
    assert words[words.index("--alias") + 1] == name
    assert not Path("pwned").exists()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", ["mini", *HOSTILE])
def test_kubernetes_accepts_the_manifest(tmp_path: Path, engine: str, name: str) -> None:
    """Oracle: the published JSON Schema of Kubernetes 1.37, strict (no unknown key)."""
    own, path = _export("kubernetes", tmp_path, engine=engine, name=name, device="cuda")
    documents = {document["kind"]: document for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))}
    for document in documents.values():
        kubernetes_validate.validate(document, "1.37", strict=True)
    assert documents["ConfigMap"]["data"] == {own.name: own.read_text(encoding="utf-8")}
    pod = documents["Deployment"]["spec"]["template"]
    selected = documents["Service"]["spec"]["selector"]
    assert selected and selected.items() <= pod["metadata"]["labels"].items()
    assert documents["Deployment"]["spec"]["selector"]["matchLabels"] == selected
    (container,) = pod["spec"]["containers"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    assert f"/etc/servetune/{own.name}" in container["command"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}


def _container(tmp_path: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    *_, path = _export("kubernetes", tmp_path, **changes)
    text = path.read_text(encoding="utf-8")
    (deployment,) = [d for d in yaml.safe_load_all(text) if d["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    return pod["containers"][0], pod, text


def test_a_pod_ends_its_answers_before_it_is_killed(tmp_path: Path) -> None:
    """vLLM aborts them at SIGTERM unless told (--shutdown-timeout, 0.32.0), ours waits 25 s unless told."""
    for engine, option in (("vllm", "--shutdown-timeout"), ("engine", "--drain-timeout")):
        container, pod, _ = _container(tmp_path / engine, engine=engine)
        drain = int(container["command"][container["command"].index(option) + 1])
        sleep = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        assert 0 < sleep + drain < pod["terminationGracePeriodSeconds"]


def test_a_pod_has_no_more_rights_than_it_needs_and_a_bound_on_its_memory(tmp_path: Path) -> None:
    container, pod, text = _container(tmp_path, device="cuda", **SPECULATIVE)
    assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert all(mount.get("readOnly") for mount in container["volumeMounts"] if mount["name"] != "shm")
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            assert f"{volume['persistentVolumeClaim']['claimName']} with the files of " in text
    assert text.count("with the files of") == 2


@pytest.mark.parametrize(
    ("engine", "device", "on_gpu", "gpus"),
    [("engine", "auto", False, 0), ("engine", "auto", True, 1), ("engine", "cpu", True, 0), ("vllm", "auto", False, 1)],
)
def test_our_engine_gets_the_device_that_it_was_measured_on(
    tmp_path: Path, engine: str, device: str, on_gpu: bool, gpus: int
) -> None:
    """The images of the others need a GPU whatever the study had."""
    container, pod, _ = _container(tmp_path, engine=engine, device=device, on_gpu=on_gpu)
    assert container["resources"].get("limits", {}).get("nvidia.com/gpu", 0) == gpus
    assert ("tolerations" in pod) == bool(gpus)


@pytest.mark.parametrize("target", MANIFESTS)
def test_a_manifest_is_read_by_people(tmp_path: Path, target: str) -> None:
    *_, path = _export(target, tmp_path, **SPECULATIVE)
    text = path.read_text(encoding="utf-8")
    assert "&id0" not in text and "[]" not in text and "{}" not in text
    head = [line for line in text.splitlines() if line.startswith("# ")]
    assert head[1].startswith("# Run: ") and any(" key: " in line for line in head) == (target != "helm-values")


@pytest.mark.parametrize(("engine", "word"), [("engine", "No such image is published"), ("llamacpp", "tag moves")])
def test_an_image_that_is_not_to_be_had_as_it_is_says_so(tmp_path: Path, engine: str, word: str) -> None:
    *_, path = _export("compose", tmp_path, engine=engine)
    assert word in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", ["vllm", "systemd"])
def test_an_image_that_nobody_runs_is_refused(tmp_path: Path, target: str) -> None:
    config = _config(tmp_path / "m")
    with pytest.raises(ValueError, match=f"--image: --to {target} runs no image; expected --to compose"):
        export(target, config, out=tmp_path, model_name="mini", provenance=PROVENANCE, image="mine:1")


@pytest.mark.parametrize("engine", ENGINES)
def test_compose_mounts_what_the_engine_reads(tmp_path: Path, engine: str) -> None:
    own, path = _export("compose", tmp_path, engine=engine, device="cpu", **SPECULATIVE)
    (service,) = yaml.safe_load(path.read_text(encoding="utf-8"))["services"].values()
    mounted, *models = service["volumes"]
    assert mounted == f"./{own.name}:/etc/servetune/{own.name}:ro"
    assert [m["source"] for m in models] == [str(tmp_path / "m"), str(tmp_path / "draft")]
    assert service["ports"] == ["127.0.0.1:8000:8000"], "no port beyond this machine unless somebody opens it"
    assert "deploy" not in service, "no GPU is reserved for device cpu"


def test_helm_values_carry_every_flag(tmp_path: Path) -> None:
    own, path = _export("helm-values", tmp_path, kv_cache_dtype="int8")
    (model,) = yaml.safe_load(path.read_text(encoding="utf-8"))["servingEngineSpec"]["modelSpec"]
    words = model["vllmConfig"]["extraArgs"]
    flags = yaml.safe_load(own.read_text(encoding="utf-8"))
    assert {f"--{flag}" for flag in flags} - {"--model"} | {"--shutdown-timeout"} == {
        word for word in words if word.startswith("--")
    }
    assert model["vllmConfig"]["enablePrefixCaching"] is False, "what the chart adds of its own must not contradict"
    assert words[words.index("--kv-cache-dtype") + 1] == "int8_per_token_head"
    assert (model["repository"], model["tag"]) == ("vllm/vllm-openai", "v0.32.0")


def test_helm_values_mount_the_models_where_the_arguments_name_them(tmp_path: Path) -> None:
    *_, path = _export("helm-values", tmp_path, held=Held(12.9, ("docs", 2.0)), name="x" * 60, **SPECULATIVE)
    text = path.read_text(encoding="utf-8")
    (model,) = yaml.safe_load(text)["servingEngineSpec"]["modelSpec"]
    assert [mount["mountPath"] for mount in model["extraVolumeMounts"]] == [
        str(tmp_path / "m"),
        str(tmp_path / "draft"),
    ]
    assert [volume["name"] for volume in model["extraVolumes"]] == ["model-0", "model-1"]
    assert "add to extraArgs: --max-num-queued-reqs and '33'" in text
    assert len(f"release-{model['name']}-vllm-stack") <= 63, "the chart's host name"


def test_helm_values_are_vllms_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="runs vllm only, given --engine sglang"):
        _export("helm-values", tmp_path, engine="sglang")


def test_a_systemd_unit_has_one_command(tmp_path: Path) -> None:
    config = _config(tmp_path / "50% of $HOME\nExecStart=/bin/false")
    *_, path = export(
        "systemd", config, out=tmp_path, model_name="x", provenance=PROVENANCE, engine="tensorrt-llm"
    )  # its command names the model's directory
    commands = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("ExecStart=")]
    assert len(commands) == 1
    assert "50%% of $$HOME\\x0aExecStart" in commands[0]


@pytest.mark.parametrize(("option", "given"), [("--to", "kubernets"), ("--engine", "vlm")])
def test_an_unknown_word_names_the_nearest(tmp_path: Path, option: str, given: str) -> None:
    target, engine = (given, "vllm") if option == "--to" else ("compose", given)
    with pytest.raises(ValueError, match=f"{option} {given}: unknown (target|engine); did you mean (kubernetes|vllm)"):
        _export(target, tmp_path, engine=engine)


def test_an_engine_beside_another_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--engine sglang: --to vllm writes for vllm; expected --to compose"):
        _export("vllm", tmp_path, engine="sglang")


@pytest.mark.parametrize("image", ["repository/only", "host:5000/repository", "name"])
def test_the_chart_wants_a_tag(tmp_path: Path, image: str) -> None:
    config = _config(tmp_path / "m")
    with pytest.raises(ValueError, match=f"--image {image}: expected REPOSITORY:TAG"):
        export("helm-values", config, out=tmp_path, model_name="mini", provenance=PROVENANCE, image=image)
    assert not (tmp_path / "vllm.yaml").exists(), "what cannot be written whole is not begun"
