"""SiLU x up against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from paged import gaussian

from engine.kernels.silu_mul import silu_mul


@pytest.mark.parametrize("width", [8, 40, 1500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_the_twin(width: int, dtype: torch.dtype) -> None:
    gate, up = (4 * gaussian(2, 2 * width, seed=1)).to(dtype).chunk(2, -1)
    found = silu_mul(torch.cat((gate, up), -1))
    assert torch.allclose(found, F.silu(gate) * up, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
