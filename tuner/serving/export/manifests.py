"""What runs an engine with its deploy file: Docker Compose, Kubernetes, Helm values (vLLM production stack), systemd.

Built as data and written by PyYAML, not by templates: a name with a quote or a line break cannot become a setting.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from engine.config import EngineConfig
from tuner.serving.export.vllm import VLLM, vllm_fixed

MANIFESTS = {"compose": "compose.yaml", "kubernetes": "kubernetes.yaml", "helm-values": "values.yaml",
             "systemd": "servetune-engine.service"}  # fmt: skip
"""Target -> its file."""
IMAGES = {
    "engine": "servetune:latest",
    "vllm": "vllm/vllm-openai:v0.32.0",
    "sglang": "lmsysorg/sglang:v0.5.20",
    "tensorrt-llm": "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc27",
    "llamacpp": "ghcr.io/ggml-org/llama.cpp:server-cuda",
}
PORT = 8000
DRAIN_SECONDS = 60
"""From SIGTERM to SIGKILL: running answers end before that."""
START_SECONDS = 900
_CONFIG_DIRECTORY = "/etc/servetune"


@dataclass(frozen=True, slots=True)
class Deployment:
    """engine: whose deploy file `text` is, under the name `file`. image: None takes that of IMAGES."""

    engine: str
    file: str
    text: str
    config: EngineConfig
    model_name: str
    fingerprint: str
    image: str | None = None

    @property
    def name(self) -> str:
        """A DNS label (RFC 1123) from the model's name."""
        label = re.sub(r"[^a-z0-9]+", "-", self.model_name.lower()).strip("-")[:40].strip("-")
        return f"servetune-{label or 'model'}"

    @property
    def run_image(self) -> str:
        return self.image or IMAGES[self.engine]

    @property
    def gpus(self) -> int:
        return 0 if self.config.device == "cpu" else 1

    @property
    def models(self) -> list[str]:
        """Directories that the engine reads."""
        draft = [self.config.draft_model] if self.config.uses_draft_model and self.config.draft_model else []
        return [self.config.model, *draft]

    def command(self, directory: str, host: str = "0.0.0.0") -> list[str]:
        """argv that serves the deploy file in `directory`."""
        path, address = f"{directory}/{self.file}", ["--host", host, "--port", str(PORT)]
        return {
            "engine": ["python3", "-m", "engine", "--config", path, *address, *_beyond_loopback(host)],
            "vllm": ["vllm", "serve", "--config", path, *address],
            "sglang": ["python3", "-m", "sglang.launch_server", "--config", path, *address],
            "tensorrt-llm": ["trtllm-serve", self.config.model, "--config", path, *address],
            "llamacpp": ["sh", path, *address],
        }[self.engine]

    @property
    def environment(self) -> dict[str, str]:
        return {"LLAMA_SERVER": "/app/llama-server"} if self.engine == "llamacpp" else {}


def _beyond_loopback(host: str) -> list[str]:
    return [] if host == "127.0.0.1" else ["--allow-remote"]


def manifest(target: str, deployment: Deployment) -> str:
    """The text of MANIFESTS[target]. Raises ValueError for helm-values of another engine than vLLM."""
    if target == "systemd":
        return _systemd(deployment)
    documents = {"compose": _compose, "kubernetes": _kubernetes, "helm-values": _helm_values}[target](deployment)
    return str(yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, allow_unicode=False, width=120))


class _Readable(yaml.SafeDumper):
    """Shows a file within the manifest line by line, where YAML can quote it so."""


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _lines)


def _compose(run: Deployment) -> list[dict[str, Any]]:
    service: dict[str, Any] = {
        "image": run.run_image,
        "entrypoint": run.command(_CONFIG_DIRECTORY),
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "volumes": [
            f"./{run.file}:{_CONFIG_DIRECTORY}/{run.file}:ro",
            *({"type": "bind", "source": path, "target": path, "read_only": True} for path in run.models),
        ],
        "ipc": "host",
        "restart": "unless-stopped",
        "stop_grace_period": f"{DRAIN_SECONDS}s",
        "healthcheck": {
            "test": _health_check(run),
            "interval": "10s",
            "timeout": "5s",
            "retries": 3,
            "start_period": f"{START_SECONDS}s",
        },
    }
    if run.environment:
        service["environment"] = run.environment
    if run.gpus:
        device = {"driver": "nvidia", "count": run.gpus, "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    return [{"name": run.name, "services": {"engine": service}}]


def _health_check(run: Deployment) -> list[str]:
    url = f"http://127.0.0.1:{PORT}/health"
    if run.engine == "llamacpp":
        return ["CMD", "curl", "--fail", "--silent", url]
    return ["CMD", "python3", "-c", f"import urllib.request; urllib.request.urlopen({url!r}, timeout=4)"]


def _kubernetes(run: Deployment) -> list[dict[str, Any]]:
    labels = {"app.kubernetes.io/name": run.name, "app.kubernetes.io/managed-by": "servetune"}
    meta = {"name": run.name, "labels": labels}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {run.file: run.text}}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": labels, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }  # fmt: skip
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            # One GPU: the old pod must give it back before the new one can start.
            "strategy": {"type": "Recreate"},
            "template": {
                # A new configuration must restart the pod, which a changed ConfigMap alone does not.
                "metadata": {"labels": labels, "annotations": {"servetune/configuration": run.fingerprint}},
                "spec": _pod(run),
            },
        },
    }
    return [config_map, deployment, service]


def _pod(run: Deployment) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
    mounts = [{"name": "config", "mountPath": _CONFIG_DIRECTORY}]
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": run.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    for index, path in enumerate(run.models):
        mounts.append({"name": f"model-{index}", "mountPath": path, "readOnly": True})  # type: ignore[dict-item]
        claim = {"claimName": f"{run.name}-model-{index}", "readOnly": True}
        volumes.append({"name": f"model-{index}", "persistentVolumeClaim": claim})
    container: dict[str, Any] = {
        "name": "engine",
        "image": run.run_image,
        "command": run.command(_CONFIG_DIRECTORY),
        "env": [{"name": name, "value": value} for name, value in run.environment.items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {**probe, "failureThreshold": START_SECONDS // 10},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "volumeMounts": [*mounts, {"name": "shm", "mountPath": "/dev/shm"}],
    }
    if run.gpus:
        container["resources"] = {"limits": {"nvidia.com/gpu": run.gpus}}
    return {"terminationGracePeriodSeconds": DRAIN_SECONDS, "containers": [container], "volumes": volumes}


def _helm_values(run: Deployment) -> list[dict[str, Any]]:
    if run.engine != "vllm":
        raise ValueError(
            f"--to helm-values: the chart (vLLM production stack) runs vllm only, given --engine {run.engine}"
        )
    repository, _, tag = run.run_image.rpartition(":")
    arguments = ["--served-model-name", run.model_name]
    for row in VLLM:
        value = row.rule(run.config).value
        if value is not None and row.flag != "model":
            arguments += [f"--{row.flag}"] if value is True else [f"--{row.flag}", str(value)]
    arguments += [f"--{flag}" for flag in vllm_fixed(run.config)]
    model = {
        "name": run.name,
        "repository": repository,
        "tag": tag,
        "modelURL": run.config.model,
        "replicaCount": 1,
        "requestCPU": 4,
        "requestMemory": "16Gi",
        "requestGPU": run.gpus,
        "vllmConfig": {"extraArgs": arguments},
    }
    return [{"servingEngineSpec": {"runtimeClassName": "", "modelSpec": [model]}}]


def _systemd(run: Deployment) -> str:
    words = run.command(f"{_CONFIG_DIRECTORY}", host="127.0.0.1")
    lines = [
        "[Unit]",
        f"Description=LLM engine, configuration {run.fingerprint}",
        "After=network-online.target",
        "Wants=network-online.target",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=5",
        "",
        "[Service]",
        f"ExecStart=/usr/bin/env {' '.join(_systemd_word(word) for word in words)}",
        "DynamicUser=yes",
        "Restart=on-failure",
        "RestartSec=5",
        "KillMode=mixed",
        f"TimeoutStopSec={DRAIN_SECONDS}",
        f"TimeoutStartSec={START_SECONDS}",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=read-only",
        "PrivateTmp=yes",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _systemd_word(word: str) -> str:
    """One word of ExecStart, quoted as systemd.service(5) reads it: % and $ doubled, C escapes within quotes."""
    if shlex.quote(word) == word and "%" not in word:
        return word
    escaped = "".join(
        c if c.isprintable() else "".join(f"\\x{byte:02x}" for byte in c.encode())
        for c in word.replace("\\", "\\\\").replace('"', '\\"')
    )
    return '"' + escaped.replace("%", "%%").replace("$", "$$") + '"'
