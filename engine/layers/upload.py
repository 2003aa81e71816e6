"""Numbers of the host on their way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor


def upload(values: Sequence[Any] | npt.NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of `values` on `device`. The host does not wait: a copy from pageable memory would end only after all
    that the device has still to compute."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)
