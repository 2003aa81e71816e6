"""What runs an engine with its deploy file: Docker Compose, Kubernetes, Helm values (vLLM production stack), systemd.

Built as data and written by PyYAML, not by templates: a name with a quote or a line break cannot become a setting.
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from tuner.serving.export.deployment import CONFIG_DIRECTORY, PORT, SHM_GIB, START_SECONDS, STOP_SECONDS, Deployment
from tuner.serving.export.kubernetes import helm_values, kubernetes

MANIFESTS = {"compose": "compose.yaml", "kubernetes": "kubernetes.yaml", "helm-values": "values.yaml",
             "systemd": "servetune-engine.service"}  # fmt: skip
"""Target -> its file."""


def manifest(target: str, deployment: Deployment) -> str:
    """The text of MANIFESTS[target]. Raises ValueError for helm-values of another engine than vLLM."""
    if target == "systemd":
        return _systemd(deployment)
    documents = {"compose": _compose, "kubernetes": kubernetes, "helm-values": helm_values}[target](deployment)
    return str(yaml.dump_all(documents, Dumper=_Readable, sort_keys=False, allow_unicode=False, width=120))


def instructions(target: str, run: Deployment) -> tuple[str, ...]:
    """What is to be done before and with MANIFESTS[target], and what it leaves open, a line each."""
    image = {"engine": _IMAGE_OF_ONES_OWN, "llamacpp": _IMAGE_THAT_MOVES}.get(run.engine)
    lines = [image] if image is not None and run.image is None and target != "systemd" else []
    named = {"compose": _with_compose, "kubernetes": _with_kubernetes, "helm-values": _with_helm,
             "systemd": _with_systemd}[target]  # fmt: skip
    return (*named(run), *lines)


_LOOPBACK = f"It answers on this machine's loopback alone, port {PORT}, and asks for no key: put a gateway before it."
_IMAGE_OF_ONES_OWN = "No such image is published: build one that has this package, or name yours with --image."
_IMAGE_THAT_MOVES = "The image's tag moves with every release: pin it by its digest, or name another with --image."


def _with_compose(run: Deployment) -> tuple[str, ...]:
    toolkit = ", which needs the NVIDIA Container Toolkit" if run.gpus else ""
    return (
        f"Run: docker compose up --detach --wait{toolkit}.",
        _LOOPBACK,
    )


def _claims(run: Deployment) -> str:
    return "; ".join(f"{run.name}-model-{index} with the files of {path}" for index, path in enumerate(run.models))


def _with_kubernetes(run: Deployment) -> tuple[str, ...]:
    return (
        "Run: kubectl apply -f kubernetes.yaml. After a change in the ConfigMap alone: kubectl rollout restart "
        f"deployment/{run.name}.",
        f"It expects these PersistentVolumeClaims: {_claims(run)}.",
        "Whatever runs in the cluster reaches the Service, which asks for no key: limit it by a NetworkPolicy.",
        "CPUs and memory are a start for the scheduler, not measured. The images run as root.",
    )


def _with_helm(run: Deployment) -> tuple[str, ...]:
    return (
        "Run: helm install RELEASE vllm/vllm-stack -f values.yaml (https://vllm-project.github.io/production-stack).",
        f"It expects these PersistentVolumeClaims: {_claims(run)}.",
        "CPUs and memory are a start for the scheduler, not measured.",
    )


def _with_systemd(run: Deployment) -> tuple[str, ...]:
    unit = MANIFESTS["systemd"]
    return (
        f"Run: install -D -m 644 {run.file} -t {CONFIG_DIRECTORY}; install -m 644 {unit} -t /etc/systemd/system; "
        f"systemctl daemon-reload; systemctl enable --now {unit}.",
        f"systemd must find {run.command('')[0]} on its PATH: write that of a virtual environment into ExecStart.",
        f"A user without a name runs it, who must be able to read: {', '.join(run.models)}.",
        _LOOPBACK,
    )


class _Readable(yaml.SafeDumper):
    """Shows a file within the manifest line by line, where YAML can quote it so; repeats what is said twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _lines)


def _compose(run: Deployment) -> list[dict[str, Any]]:
    service: dict[str, Any] = {
        "image": run.run_image,
        "entrypoint": run.command(CONFIG_DIRECTORY),
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "volumes": [
            f"./{run.file}:{CONFIG_DIRECTORY}/{run.file}:ro",
            *({"type": "bind", "source": path, "target": path, "read_only": True} for path in run.models),
        ],
        "shm_size": f"{SHM_GIB}gb",
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        "restart": "unless-stopped",
        "stop_grace_period": f"{STOP_SECONDS}s",
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


def _systemd(run: Deployment) -> str:
    words = run.command(f"{CONFIG_DIRECTORY}", host="127.0.0.1")
    lines = [
        "[Unit]",
        f"Description=LLM engine, configuration {run.fingerprint}",
        "After=network-online.target",
        "Wants=network-online.target",
        "StartLimitIntervalSec=600",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart=/usr/bin/env {' '.join(_systemd_word(word) for word in words)}",
        "DynamicUser=yes",
        # Compiled kernels and the like: a dynamic user has no home.
        "CacheDirectory=%N",
        "Environment=HOME=%C/%N",
        "Restart=on-failure",
        "RestartSec=5",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_SECONDS}",
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
