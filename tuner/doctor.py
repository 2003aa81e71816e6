"""Whether this machine can run studies: each check says what will work, what will not, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from engine.memory import available_host_bytes
from tuner.environment import cpu_pressure, environment

Verdict = Literal["ok", "warning", "failure"]
FREE_DISK_BYTES = 2 * 2**30
FREE_MEMORY_BYTES = 2 * 2**30
MIN_CORES = 2
BUSY_SHARE = 0.10
"""Of the last 10 s: more, and latencies of a replay measure the other work too."""
OPEN_FILES = 1024


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. advice: empty where there is nothing to do."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""


def checks(directory: Path) -> list[Check]:
    """Every check, in the order in which a study would meet them. directory: where runs are to be written."""
    machine = environment()
    return [
        _python(machine),
        *_packages(machine),
        *_accelerator(machine),
        _cores(machine),
        _contention(cpu_pressure()),
        _memory(available_host_bytes()),
        _disk(directory),
        _ports(),
        _open_files(),
    ]


def as_json(found: list[Check]) -> list[dict[str, Any]]:
    """The checks as plain mappings."""
    return [asdict(check) for check in found]


def _python(machine: dict[str, Any]) -> Check:
    return Check("python", "ok", f"{machine['python']} on {machine['platform']}")


def _packages(machine: dict[str, Any]) -> Iterator[Check]:
    versions = machine["packages"]
    for name in ("torch", "optuna", "aiohttp"):
        if name in versions:
            yield Check(name, "ok", versions[name])
        else:
            yield Check(
                name, "failure", "not installed", "make demo installs it, or: pip install -c constraints.txt -e ."
            )


def _accelerator(machine: dict[str, Any]) -> Iterator[Check]:
    gpus = machine["gpus"]
    if not gpus:
        yield Check("gpu", "ok", "none found: the engine runs on the CPU, other engines behind --url as they are")
        return
    yield Check("gpu", "ok", "; ".join(gpus))
    if importlib.util.find_spec("triton") is None:
        yield Check("triton", "warning", "not installed", "GPU kernels need it: pip install triton (as torch pins it)")
    else:
        yield Check("triton", "ok", machine["packages"].get("triton", "installed"))


def _cores(machine: dict[str, Any]) -> Check:
    cores = int(machine["cpu_cores"] or 1)
    found = f"{cores} of {machine['cpu']}"
    if cores >= MIN_CORES:
        return Check("cpu cores", "ok", found)
    return Check(
        "cpu cores", "warning", found, "the load generator will lag beside the engine: run it elsewhere (--url)"
    )


def _contention(pressure: float | None) -> Check:
    if pressure is None:
        return Check("cpu contention", "warning", "not told (no /proc/pressure)", "make sure that nothing else runs")
    found = f"{pressure:.0%} of the last 10 s some task waited for a CPU"
    if pressure <= BUSY_SHARE:
        return Check("cpu contention", "ok", found)
    return Check("cpu contention", "warning", found, "stop other work before a study: it is measured as latency")


def _memory(available: int) -> Check:
    found = f"{available / 2**30:.1f} GiB available"
    if available >= FREE_MEMORY_BYTES:
        return Check("memory", "ok", found)
    return Check("memory", "warning", found, "the demo takes 1.5 GiB; engines check their own plan before they start")


def _disk(directory: Path) -> Check:
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        return Check("disk", "failure", f"{existing}: not writable", "choose another directory with --out")
    free = shutil.disk_usage(existing).free
    found = f"{free / 2**30:.1f} GiB free at {existing}"
    if free >= FREE_DISK_BYTES:
        return Check("disk", "ok", found)
    return Check("disk", "warning", found, "a study of 100 trials stores some hundred MiB")


def _ports() -> Check:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return Check("ports", "ok", f"loopback gives ports, such as {probe.getsockname()[1]}")
    except OSError as error:
        return Check("ports", "failure", f"127.0.0.1: {error.strerror}", "engines listen on loopback")


def _open_files() -> Check:
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    found = f"{soft} open files allowed"
    if soft >= OPEN_FILES:
        return Check("open files", "ok", found)
    return Check("open files", "warning", found, f"each stream is one: ulimit -n {OPEN_FILES}")
