"""Products with packed weights against the twin that dequantises first."""

from __future__ import annotations

import pytest
import torch
from paged import gaussian
from torch import Tensor

from engine.kernels.quantized_product import MOST_ROWS, quantized_product
from engine.layers.quantization import QuantizedWeight, pack, quantize_int4, quantize_int8


def codes(bits: int, outputs: int, inputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randint(0, 1 << bits, (outputs, inputs), generator=generator)


DENSE = gaussian(40, 128, seed=1)
WEIGHTS = {
    "int8 with a scale per output": quantize_int8(DENSE),
    "int8 in groups with zero points": pack(8, codes(8, 40, 128), gaussian(40, 4, seed=2), codes(8, 40, 4)),
    "int4 with zero points": quantize_int4(DENSE, 32),
    "int4 without zero points": pack(4, codes(4, 40, 128), gaussian(40, 2, seed=2), None),
    "int4 in one group": pack(4, codes(4, 40, 96), gaussian(40, 1, seed=2), None),
    "int4 with reordered inputs": pack(
        4, codes(4, 40, 128), gaussian(40, 2, seed=2), codes(4, 40, 2), torch.arange(127, -1, -1, dtype=torch.int32)
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 19])
def test_equals_the_twin(name: str, rows: int) -> None:
    weight: QuantizedWeight = WEIGHTS[name]
    inputs = weight.codes.shape[1] * (2 if weight.bits == 4 else 1)
    x = gaussian(rows, 2 * inputs, seed=3)[:, :inputs]
    wanted = weight.product(x)
    assert torch.allclose(quantized_product(x, weight), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


def test_many_rows_are_left_to_the_dense_product() -> None:
    x = gaussian(MOST_ROWS + 1, 128, seed=3)
    weight = WEIGHTS["int4 with zero points"]
    assert torch.equal(quantized_product(x, weight), weight.product(x))
