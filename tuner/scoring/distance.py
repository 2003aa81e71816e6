"""How far one forced probe's log-probabilities are from the reference's, position by position (docs/metrics.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tuner.scoring.probes import ProbeRecord

FloatArray = npt.NDArray[np.float64]
WORST_LOGPROB = -50.0
"""What a log-probability that is no number (broken logits) counts as: a token all but impossible."""
FLIP_MARGIN = 0.01
"""Nats between the reference's two likeliest tokens above which another argmax is a flip that matters. The same
configuration twice differs by less than 1e-4 in float32 and by some 0.01 where activations are bfloat16."""


@dataclass(frozen=True, slots=True)
class Distance:
    """One document. increase: mean of NLL minus the reference's, nats per token. positions: of the target.

    flips: positions whose argmax changed although the reference's margin exceeded FLIP_MARGIN. right, reference_right:
    positions whose argmax is the target's token. kl: at each position, nats; None where nothing was listed.
    """

    positions: int
    increase: float
    flips: int
    right: int
    reference_right: int
    kl: FloatArray | None


def distance(reference: ProbeRecord, measured: ProbeRecord) -> Distance:
    """Compare two answers to the same forced probe. Raises ValueError when their listings do not fit each other."""
    tokens = reference.tokens
    listed, other = _listing(reference), _listing(measured)
    changed = np.array(reference.top_tokens) != np.array(measured.top_tokens)
    if listed is not None:
        changed &= listed[:, 0] - listed[:, 1] > FLIP_MARGIN
    return Distance(
        positions=len(tokens),
        increase=_nll(measured) - _nll(reference),
        flips=int(changed.sum()),
        right=sum(a == b for a, b in zip(tokens, measured.top_tokens, strict=True)),
        reference_right=sum(a == b for a, b in zip(tokens, reference.top_tokens, strict=True)),
        kl=None if listed is None or other is None else kl_divergence(listed, other),
    )


def kl_divergence(p: FloatArray, q: FloatArray) -> FloatArray:
    """KL(p || q) of each row in nats; log-probabilities [N, k + 1] of the same k tokens and of all others together.

    Merging tokens can only lower KL (log-sum inequality), so this is a lower bound of that over the vocabulary.
    """
    if p.shape != q.shape:
        raise ValueError(f"listings of {q.shape} and of {p.shape} numbers do not fit; measure the reference again")
    mass = np.exp(p)
    terms = mass * (np.maximum(p, WORST_LOGPROB) - np.maximum(q, WORST_LOGPROB))
    return np.maximum(terms.sum(axis=1), 0.0)  # rounding alone is below 0


def _listing(record: ProbeRecord) -> FloatArray | None:
    """Log-probabilities [positions, k + 1]; what is no number, or -inf, as WORST_LOGPROB."""
    if not record.listed_logprobs:
        return None
    values = np.frombuffer(record.listed_logprobs, dtype="<f4").astype(np.float64)
    if len(values) % len(record.tokens):
        raise ValueError(f"probe {record.probe_id}: {len(values)} listed numbers for {len(record.tokens)} tokens")
    found = np.nan_to_num(values, nan=WORST_LOGPROB, neginf=WORST_LOGPROB, posinf=WORST_LOGPROB)
    return found.reshape(len(record.tokens), -1)


def _nll(record: ProbeRecord) -> float:
    """Nats per token."""
    values = [max(p, WORST_LOGPROB) if math.isfinite(p) else WORST_LOGPROB for p in record.logprobs]
    return -sum(values) / len(values)
