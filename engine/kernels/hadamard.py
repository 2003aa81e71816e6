"""The rotation under int4 pages: a normalised Hadamard matrix after random signs (QuaRot, Ashkboos et al. 2024).

A channel that is far larger than the others takes the whole range of a shared scale; rotated, its size is spread over
all of them. R is orthogonal, so q.k = (qR).(kR), and an average of rotated values is rotated back once, at the end.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

_SIGNS_SEED = 4


@functools.cache
def rotation(size: int, device: torch.device) -> Tensor:
    """R [size, size] in float32: x @ R rotates the last axis, x @ R.T undoes it. size: a power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    assert len(matrix) == size, "the planner refuses other head sizes"
    signs = torch.randint(0, 2, (size, 1), generator=torch.Generator().manual_seed(_SIGNS_SEED)) * 2 - 1
    return (signs * matrix / size**0.5).to(device)
