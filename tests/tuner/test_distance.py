"""KL from a listing, against scipy over the whole vocabulary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp
from scipy.stats import entropy

from tuner.scoring.distance import FloatArray, kl_divergence


def listed(logprobs: FloatArray, ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> FloatArray:
    kept = np.take_along_axis(logprobs, ids, 1)
    others = logprobs.copy()
    np.put_along_axis(others, ids, -np.inf, 1)
    return np.concatenate((kept, logsumexp(others, axis=1, keepdims=True)), 1)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 3.0))
def test_it_is_a_lower_bound_and_nearly_all_of_the_divergence(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (5, 500))
    p, q = log_softmax(logits, 1), log_softmax(logits + rng.normal(0, noise, logits.shape), 1)
    ids = np.argsort(-p, axis=1)[:, :64]
    found, whole = kl_divergence(listed(p, ids), listed(q, ids)), entropy(np.exp(p), np.exp(q), axis=1)
    assert np.all(found >= 0) and np.all(found <= whole + 1e-9)
    assert found.sum() > 0.7 * whole.sum()


def test_equal_distributions_have_none_and_a_token_that_became_impossible_costs_much() -> None:
    p = np.log(np.array([[0.7, 0.3, 1e-30]]))
    assert kl_divergence(p, p).tolist() == [0.0]
    assert kl_divergence(p, np.array([[-50.0, 0.0, -50.0]]))[0] > 30


def test_listings_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="measure the reference again"):
        kl_divergence(np.zeros((2, 3)), np.zeros((2, 5)))
