"""What makes a study the same study when it is run again, and who may run it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tuner.plan import Plan
from tuner.store import Store
from tuner.stored import StudyInfo

LEASE_SECONDS = 900.0
"""Longer than any one measurement; renewed before each."""
MAY_CHANGE = ("budget.", "engine.launch_timeout", "engine.hang_timeout", "engine.launcher")
"""Keys of the study file that change no measurement's meaning: a study may be resumed with more budget."""


def check_unchanged(info: StudyInfo, plan: Plan) -> None:
    """Raises ValueError naming the first key whose value, or whose file's content, is not what the study began with."""
    name = plan.spec.name
    if info.space_hash != plan.space.fingerprint:
        raise ValueError(_refusal(name, "search_space"))
    before, after = _flat(json.loads(info.spec)), _flat(plan.spec.model_dump(mode="json"))
    for key in (*after, *(key for key in before if key not in after)):
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE):
            raise ValueError(_refusal(name, key))
    for key, content in info.provenance["files"].items():
        if plan.hashes.get(key) != content:
            raise ValueError(_refusal(name, f"{key} (the content of the file)"))


@contextmanager
def held_lease(store: Store, name: str) -> Iterator[Callable[[], None]]:
    """Be the study's only runner; yields what renews the lease. Raises ValueError while another runner lives.

    The lease of a runner of this machine whose process is gone (kill -9) is taken over at once.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}"
    held = store.lease(name)
    if held is not None and _is_gone(held.owner):
        store.release_lease(name, held.owner)
    store.acquire_lease(name, owner, LEASE_SECONDS)
    try:
        yield lambda: store.renew_lease(name, owner, LEASE_SECONDS)
    finally:
        store.release_lease(name, owner)


def runner_alive(store: Store, name: str) -> str | None:
    """Who runs the study now; None when nobody does."""
    held = store.lease(name)
    alive = held is not None and held.expires > time.time() and not _is_gone(held.owner)
    return held.owner if held is not None and alive else None


def _is_gone(owner: str) -> bool:
    host, _, pid = owner.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _refusal(name: str, key: str) -> str:
    return f"{key}: changed since study {name!r} began; change it back, or choose another name for a new study"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat
