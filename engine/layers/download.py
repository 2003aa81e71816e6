"""Numbers of the device on their way to the host."""

from __future__ import annotations

import torch
from torch import Tensor


class Download:
    """Copies of tensors, one after another behind what computes them; the host waits once for all of them."""

    def __init__(self, *tensors: Tensor) -> None:
        # From a GPU into pinned memory; the event says when they are there.
        self._copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrived = torch.cuda.Event() if tensors[0].is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> list[Tensor]:
        """The copies, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._copies
