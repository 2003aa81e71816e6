"""An engine in Kubernetes: its own objects, or values for the vLLM production stack."""

from __future__ import annotations

from typing import Any

from tuner.serving.export.deployment import (
    CONFIG_DIRECTORY,
    CPUS,
    MEMORY,
    PORT,
    SHM_GIB,
    START_SECONDS,
    STOP_SECONDS,
    Deployment,
)
from tuner.serving.export.vllm import VLLM, vllm_fixed

UNROUTED_SECONDS = 5
"""Before SIGTERM, in which balancers learn that a pod is going."""
CHART_DRAIN_SECONDS = 25
"""The chart leaves Kubernetes' 30 s until SIGKILL."""
CHART_NAME = 32
"""Characters: the chart makes a host name of it, the release's and its own, of at most 63."""


def kubernetes(run: Deployment) -> list[dict[str, Any]]:
    """ConfigMap, Deployment and Service."""
    own = {"app.kubernetes.io/name": run.name}
    labels = {**own, "app.kubernetes.io/managed-by": "servetune"}
    meta = {"name": run.name, "labels": labels}
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {run.file: run.text}}
    service = {
        "apiVersion": "v1", "kind": "Service", "metadata": meta,
        "spec": {"selector": own, "ports": [{"name": "http", "port": PORT, "targetPort": "http"}]},
    }  # fmt: skip
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": meta,
        "spec": {
            "replicas": run.replicas,
            "selector": {"matchLabels": own},
            # Each pod has a GPU: the old one must give it back before the new one can start.
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
    volumes, mounts = _model_volumes(run)
    volumes += [
        {"name": "config", "configMap": {"name": run.name}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHM_GIB}Gi"}},
    ]
    mounts += [
        {"name": "config", "mountPath": CONFIG_DIRECTORY, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    pod: dict[str, Any] = {
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [_container(run, mounts)],
        "volumes": volumes,
    }
    if run.gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _container(run: Deployment, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    probe = {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5}
    resources: dict[str, Any] = {"requests": {"cpu": CPUS, "memory": MEMORY}}
    if run.gpus:
        resources["limits"] = {"nvidia.com/gpu": run.gpus}
    container: dict[str, Any] = {
        "name": "engine",
        "image": run.run_image,
        "command": run.command(CONFIG_DIRECTORY),
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": {**probe, "failureThreshold": START_SECONDS // 10},
        "readinessProbe": probe,
        "livenessProbe": {**probe, "failureThreshold": 6},
        "lifecycle": {"preStop": {"sleep": {"seconds": UNROUTED_SECONDS}}},
        "resources": resources,
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": mounts,
    }
    if run.environment:
        container["env"] = [{"name": name, "value": value} for name, value in run.environment.items()]
    return container


def _model_volumes(run: Deployment) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A claim for each model's directory, mounted where the deploy file names it."""
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for index, path in enumerate(run.models):
        name = f"model-{index}"
        claim = {"claimName": f"{run.name}-{name}", "readOnly": True}
        volumes.append({"name": name, "persistentVolumeClaim": claim})
        mounts.append({"name": name, "mountPath": path, "readOnly": True})
    return volumes, mounts


def helm_values(run: Deployment) -> list[dict[str, Any]]:
    """Values of the chart of the vLLM production stack. Raises ValueError for another engine."""
    if run.engine != "vllm":
        raise ValueError(
            f"--to helm-values: the chart (vLLM production stack) runs vllm only, given --engine {run.engine}"
        )
    repository, _, tag = run.run_image.rpartition(":")
    if not repository or "/" in tag:
        raise ValueError(f"--image {run.run_image}: expected REPOSITORY:TAG, for the chart has a key for each")
    arguments = ["--served-model-name", run.model_name]
    for row in VLLM:
        value = row.rule(run.config).value
        if value is not None and row.flag != "model":
            arguments += [f"--{row.flag}"] if value is True else [f"--{row.flag}", str(value)]
    arguments += [f"--{flag}" for flag in vllm_fixed(run.config)]
    arguments += ["--shutdown-timeout", str(CHART_DRAIN_SECONDS)]
    volumes, mounts = _model_volumes(run)
    model = {
        "name": run.name[:CHART_NAME].strip("-"),
        "repository": repository,
        "tag": tag,
        "modelURL": run.config.model,
        "replicaCount": run.replicas,
        "requestCPU": CPUS,
        "requestMemory": MEMORY,
        "requestGPU": run.gpus,
        # The chart says --no-enable-prefix-caching where this is not set; the arguments come after it.
        "vllmConfig": {"enablePrefixCaching": run.config.enable_prefix_caching, "extraArgs": arguments},
        "extraVolumes": volumes,
        "extraVolumeMounts": mounts,
    }
    return [{"servingEngineSpec": {"runtimeClassName": "", "modelSpec": [model]}}]
