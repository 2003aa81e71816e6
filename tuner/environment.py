"""Where a measurement was made: versions, machine, commit, content hashes. Stamped on each measurement."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("servetune", "torch", "triton", "optuna", "numpy", "aiohttp")
COMMAND_SECONDS = 5.0
MIB = 2**20
MODEL_FILES = ("*.safetensors", "*.json")


def environment() -> dict[str, Any]:
    """What this machine is. Imports none of the packages whose versions it tells; asks no network."""
    return {
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
        **_commit(),
    }


def device_bytes(machine: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Memory of the host and of its largest GPU, as `environment` told them; None for what there is not or is not
    known: a GPU that shares the host's memory tells no size."""
    sizes = [line.rsplit(",", 1)[-1].split() for line in machine.get("gpus", ())]
    if not sizes:
        return machine.get("memory_bytes"), None
    gpus = [int(size[0]) * MIB for size in sizes if len(size) == 2 and size[0].isdigit() and size[1] == "MiB"]
    return (machine.get("memory_bytes"), max(gpus)) if gpus else (None, None)


def cpu_pressure() -> float | None:
    """Share of the last 10 s in which a task waited for a CPU, 0 to 1 (Linux PSI); None where it is not told."""
    try:
        some = Path("/proc/pressure/cpu").read_text(encoding="ascii").splitlines()[0]
        return float(some.split("avg10=")[1].split()[0]) / 100
    except (OSError, IndexError, ValueError):
        return None


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes (16 hex digits)."""
    return _hash((path,))


def model_hash(directory: Path) -> str:
    """SHA-256 (16 hex digits) of a checkpoint's weights and JSON files, names included."""
    return _hash(tuple(sorted(path for pattern in MODEL_FILES for path in directory.glob(pattern))))


def _hash(paths: tuple[Path, ...]) -> str:
    return _content_hash(tuple((path, (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths))


@lru_cache
def _content_hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    """files: path, bytes, time of the last change. A plan is made more than once a run, and checkpoints are large."""
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpus() -> list[str]:
    """One line per GPU: name, driver, memory."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return _output(query).splitlines()


def _commit() -> dict[str, Any]:
    """Of the repository that holds this file; nothing when it was installed from a wheel."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = _output([*git, "rev-parse", "HEAD"])
    if not commit:
        return {}
    return {"commit": commit, "dirty": bool(_output([*git, "status", "--porcelain", "--untracked-files=no"]))}


def _output(command: list[str]) -> str:
    """What a command prints; empty when there is no such command, it fails or it takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
