"""Temperature, min-p, top-k, top-p and the draw, one program a row. The twin is `sampler.sample`.

Nothing is sorted: what top-k and top-p keep is a prefix of the descending order, of equal tokens the first ones. Where
it ends is found by bisection over float32's 2^32 values in their order, 32 passes over a row that stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.layers.upload import upload
from engine.sequence import SamplingParams

BLOCK = 4096


@triton.jit
def _values(logits, block, temperature, floor, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """The row's next logits over the temperature, and their rank as whole numbers in the same order."""
    column = block + tl.arange(0, BLOCK)
    found = tl.load(logits + column, mask=column < VOCAB, other=float("-inf"))
    value = tl.div_rn(found, temperature + tl.zeros((BLOCK,), tl.float32))
    value = tl.where(value < floor, float("-inf"), value) + 0.0  # -0.0 is 0.0
    bits = value.to(tl.int32, bitcast=True)
    return column, value, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)


@triton.jit
def _above(logits, rank, temperature, floor, largest, VOCAB: tl.constexpr, BLOCK: tl.constexpr):
    """How many tokens of the row rank above `rank`, and their mass relative to the likeliest one's."""
    count = tl.zeros((), tl.int32)
    mass = tl.zeros((), tl.float64)
    for block in range(0, VOCAB, BLOCK):
        column, value, ranks = _values(logits, block, temperature, floor, VOCAB, BLOCK)
        above = (ranks > rank) & (column < VOCAB)
        count += tl.sum(above.to(tl.int32), 0)
        mass += tl.sum(tl.where(above, tl.exp(value - largest), 0.0).to(tl.float64), 0)
    return count, mass


@triton.jit
def _sample(
    tokens, logits, temperatures, floors, top_ks, top_ps, uniforms, row_stride,
    VOCAB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    logits += row.to(tl.int64) * row_stride
    temperature = tl.load(temperatures + row)
    greedy = temperature == 0.0
    temperature = tl.where(greedy, 1.0, temperature)
    largest = tl.full((), float("-inf"), tl.float32)
    first = tl.full((), VOCAB, tl.int32)
    for block in range(0, VOCAB, BLOCK):
        column, value, ranks = _values(logits, block, temperature, float("-inf"), VOCAB, BLOCK)
        most = tl.max(value, 0)
        at = tl.min(tl.where((value == most) & (column < VOCAB), column, VOCAB), 0)
        first = tl.where(most > largest, at, first)
        largest = tl.maximum(largest, most)
    if greedy:
        tl.store(tokens + row, first.to(tl.int64))
        return
    floor = largest + tl.load(floors + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    lowest = tl.full((), -(2**31), tl.int64)
    last = lowest
    kept = tl.full((), VOCAB, tl.int32)
    if top_k < VOCAB:
        # The least rank with fewer than k tokens above it: the k-th token's.
        high = tl.full((), 2**31 - 1, tl.int64)
        while last < high:
            middle = last + (high - last) // 2
            count, mass = _above(logits, middle, temperature, floor, largest, VOCAB, BLOCK)
            if count < top_k:
                high = middle
            else:
                last = middle + 1
        count, mass = _above(logits, last, temperature, floor, largest, VOCAB, BLOCK)
        kept = top_k - count
    limit = tl.zeros((), tl.float64)
    if top_p < 1.0:
        # Of what top-k left, the least rank with less than top_p of the mass above it.
        count, mass = _above(logits, last, temperature, floor, largest, VOCAB, BLOCK)
        count_all, mass_all = _above(logits, last - 1, temperature, floor, largest, VOCAB, BLOCK)
        ties = tl.maximum(count_all - count, 1)
        total = mass + (mass_all - mass) * tl.minimum(kept, ties).to(tl.float64) / ties.to(tl.float64)
        limit = total * top_p.to(tl.float64)
        low = last
        high = tl.full((), 2**31 - 1, tl.int64)
        while low < high:
            middle = low + (high - low) // 2
            count, mass = _above(logits, middle, temperature, floor, largest, VOCAB, BLOCK)
            if mass < limit:
                high = middle
            else:
                low = middle + 1
        count, mass = _above(logits, low, temperature, floor, largest, VOCAB, BLOCK)
        count_all, mass_all = _above(logits, low - 1, temperature, floor, largest, VOCAB, BLOCK)
        one = (mass_all - mass) / tl.maximum(count_all - count, 1).to(tl.float64)
        wanted = tl.where(one > 0.0, tl.ceil((limit - mass) / tl.where(one > 0.0, one, 1.0)), 1.0 * VOCAB)
        wanted = tl.minimum(wanted, 1.0 * VOCAB).to(tl.int32)
        kept = tl.where(low > last, wanted, tl.minimum(kept, wanted))
        last = low
    count, mass = _above(logits, last, temperature, floor, largest, VOCAB, BLOCK)
    count_all, mass_all = _above(logits, last - 1, temperature, floor, largest, VOCAB, BLOCK)
    ties = tl.maximum(count_all - count, 1)
    total = mass + (mass_all - mass) * tl.minimum(kept, ties).to(tl.float64) / ties.to(tl.float64)
    target = total * tl.load(uniforms + row)
    before = tl.zeros((), tl.float64)
    ties_before = tl.zeros((), tl.int32)
    token = tl.full((), VOCAB, tl.int32)
    final = tl.zeros((), tl.int32)
    for block in range(0, VOCAB, BLOCK):
        column, value, ranks = _values(logits, block, temperature, floor, VOCAB, BLOCK)
        tie = ((ranks == last) & (column < VOCAB)).to(tl.int32)
        tie_rank = ties_before + tl.cumsum(tie, 0) - tie
        stays = ((ranks > last) & (column < VOCAB)) | ((tie == 1) & (tie_rank < kept))
        weight = tl.where(stays, tl.exp(value - largest), 0.0).to(tl.float64)
        cumulative = before + tl.cumsum(weight, 0)
        token = tl.minimum(token, tl.min(tl.where(stays & (cumulative > target), column, VOCAB), 0))
        final = tl.maximum(final, tl.max(tl.where(stays & (weight > 0.0), column, 0), 0))
        before += tl.sum(weight, 0)
        ties_before += tl.sum(tie, 0)
    # Sums in another order may fall short of the total by a rounding.
    tl.store(tokens + row, tl.where(token < VOCAB, token, final).to(tl.int64))


def sample(logits: Tensor, params: Items[SamplingParams], uniforms: Items[float]) -> Tensor:
    """A token, [N] int64, for each row of logits [N, vocab] float32 by its parameters and its number in [0, 1)."""
    rows, vocab = logits.shape
    device = logits.device
    temperatures = upload([0.0 if p.greedy else p.temperature for p in params], device)
    floors = upload([p.min_p for p in params], device).log()
    top_ks = upload([min(p.top_k, vocab) or vocab for p in params], device, torch.int32)
    top_ps = upload([p.top_p for p in params], device)
    numbers = upload(uniforms, device, torch.float64)
    found = torch.empty(rows, dtype=torch.int64, device=device)
    _sample[(rows,)](
        found, logits, temperatures, floors, top_ks, top_ps, numbers, logits.stride(0),
        VOCAB=vocab, BLOCK=min(BLOCK, triton.next_power_of_2(vocab)), num_warps=8,
    )  # fmt: skip
    return found
