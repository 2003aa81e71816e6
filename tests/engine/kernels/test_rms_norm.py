"""Residual and RMSNorm against the sum and the layer."""

from __future__ import annotations

import pytest
import torch
from paged import gaussian

from engine.kernels.rms_norm import add_rms_norm
from engine.layers.norm import RMSNorm


@pytest.mark.parametrize("width", [16, 24, 100])
@pytest.mark.parametrize("added", [True, False])
def test_equals_the_twin(width: int, added: bool) -> None:
    x, delta = gaussian(3, width, seed=1), gaussian(3, 2 * width, seed=2)[:, :width]
    weight = gaussian(width, seed=3)
    total, normed = add_rms_norm(x, delta if added else None, weight, 1e-5)
    wanted = x + delta if added else x
    assert torch.equal(total, wanted)
    assert torch.allclose(normed, RMSNorm(weight, 1e-5)(wanted), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_rows_are_summed_wide(dtype: torch.dtype) -> None:
    x, delta, weight = (gaussian(2, 64, seed=seed).to(dtype) for seed in (1, 2, 3))
    total, normed = add_rms_norm(x, delta, weight[0], 1e-5)
    step = torch.finfo(dtype).eps
    # The interpreter truncates where a store should round: one step of the dtype.
    assert torch.allclose(total, x + delta, rtol=step, atol=0)
    assert torch.allclose(normed, RMSNorm(weight[0], 1e-5)(total), rtol=4 * step, atol=0)
