"""What makes a study the same study when it is run again, and who may run it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.spec import flat
from tuner.store import Store
from tuner.stored import Lease, StudyInfo

if TYPE_CHECKING:  # it reaches the engine's client, which reading what was stored does not need
    from tuner.plan import Plan

LEASE_SECONDS = 900.0
"""Longer than any one measurement; renewed before each."""
CLOCK_SLACK = 5.0
"""Seconds by which the start of a process and the renewal of a lease may be told wrongly against each other."""
MAY_CHANGE = (
    "budget.",
    "cost",
    "engine.launch_timeout",
    "engine.hang_timeout",
    "engine.launcher",
    "quality.reference_cache",
)
"""Keys of the study file that change no measurement's meaning: a study may be resumed with more budget."""


def check_unchanged(info: StudyInfo, plan: Plan) -> None:
    """Raises ValueError naming the first key whose value, or whose file's content, is not what the study began with."""
    name = plan.spec.name
    if info.space_hash != plan.space.fingerprint:
        raise ValueError(_refusal(name, "search_space"))
    before, after = flat(json.loads(info.spec)), flat(plan.spec.model_dump(mode="json"))
    for key in (*after, *(key for key in before if key not in after)):
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE):
            raise ValueError(_refusal(name, key))
    for key, content in info.provenance["files"].items():
        if plan.hashes.get(key) != content:
            raise ValueError(_refusal(name, f"{key} (the content of the file)"))


@contextmanager
def held_lease(store: Store, name: str) -> Iterator[Callable[[], None]]:
    """Be the study's only runner; yields what renews the lease. Raises ValueError while another runner lives.

    A runner of this machine holds its lease as long as its process lives, however long a measurement takes; the lease
    of one whose process is gone (kill -9) is taken over at once.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}"
    held = store.lease(name)
    if held is not None and held.owner != owner and (lives := _lives(held)) is not None:
        if lives:
            raise ValueError(f"study {name!r} is being run by {held.owner}; stop it, or wait")
        store.release_lease(name, held.owner)
    store.acquire_lease(name, owner, LEASE_SECONDS)
    try:
        yield lambda: store.renew_lease(name, owner, LEASE_SECONDS)
    finally:
        store.release_lease(name, owner)


def runner_alive(store: Store, name: str) -> str | None:
    """Who runs the study now; None when nobody does."""
    held = store.lease(name)
    if held is None:
        return None
    lives = _lives(held)
    return held.owner if lives or (lives is None and held.expires > time.time()) else None


def _lives(held: Lease) -> bool | None:
    """Whether the process of the lease's owner lives; None for one of another machine, of which only expiry tells."""
    host, _, pid = held.owner.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started = _started(int(pid))
    return started is None or started <= held.expires - LEASE_SECONDS + CLOCK_SLACK


def _started(pid: int) -> float | None:
    """When a process started, in seconds of the Unix epoch; None where there is no /proc (proc(5)).

    One that started after the lease was renewed is another process that was given the number of a dead runner.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except OSError:
        return None
    # Field 22, counted behind the command's name, which may hold spaces and parentheses.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def _refusal(name: str, key: str) -> str:
    return f"{key}: changed since study {name!r} began; change it back, or choose another name for a new study"
