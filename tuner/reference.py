"""The reference's answers: what they depend on, which requests of the traffic they include, and a cache of them."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import msgspec

from tuner.scoring.probes import LISTED, Probe, ProbeRecord
from tuner.serving import adapters
from tuner.serving.config import ServingConfig
from tuner.stored import pack, unpack
from tuner.traffic.trace import Trace

PRODUCTION = "production"
"""Name of the slice."""


def reference_key(model_hash: str, probes: Sequence[Probe], config: ServingConfig) -> str:
    """Content hash of all that reference answers depend on: the checkpoint with its tokenizer, what is asked, how the
    engine serves it."""
    asked = [model_hash, LISTED, adapters.quality_key(config), [astuple(probe) for probe in probes]]
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()


def production_probes(trace: Trace, count: int, seed: int, longest: int) -> tuple[Probe, ...]:
    """Forced probes of `count` recorded requests (or all, if fewer), without targets: the reference's answers are
    those. longest: tokens of a prompt; requests whose length is unknown are left out.

    Raises ValueError when fewer than two requests can be asked.
    """
    if not count:
        return ()
    fitting = [r for r in trace.requests if r.prompt_tokens is not None and r.prompt_tokens <= longest]
    if len(fitting) < 2:
        raise ValueError(
            f"quality.production_sample: {len(fitting)} requests have a known length up to {longest} tokens"
        )
    drawn = random.Random(seed).sample(fitting, min(count, len(fitting)))
    return tuple(
        Probe(f"{PRODUCTION}-{request.id}", PRODUCTION, "forced", request.prompt, (), length=request.prompt_tokens)
        for request in drawn
    )


def cached_reference(directory: Path, key: str) -> tuple[ProbeRecord, ...] | None:
    """What cache_reference has kept. Raises ValueError for a file that it did not write."""
    try:
        packed = _path(directory, key).read_bytes()
    except FileNotFoundError:
        return None
    return unpack(packed, tuple[ProbeRecord, ...], str(_path(directory, key)))


def cache_reference(directory: Path, key: str, records: Sequence[ProbeRecord]) -> None:
    """Keep reference answers for other studies; the file is there whole or not at all, and only its owner reads it."""
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{key}.{os.getpid()}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pack(tuple(records)))
    partial.replace(_path(directory, key))


def _path(directory: Path, key: str) -> Path:
    return directory / f"{key}.reference"
