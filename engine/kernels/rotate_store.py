"""Norms of query and key heads, rotation, and keys and values into their pages, quantised on the way: one launch.

The twin is RMSNorm, `rotary.rotate` and `reference.store`, one after the other. A program takes one token and up to
BLOCK_H heads of one kind, each as the two halves of its channels: rotation and packed int4 both pair channel i with
i + D / 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.compute import compute_dtype
from engine.kernels.hadamard import rotation
from engine.kernels.reference import LARGEST, PagedTensor
from engine.layers.norm import RMSNorm

BLOCK_H = 16
"""The least that a matrix product takes, which the rotation under int4 needs."""


@triton.jit
def round_even(x):
    """To whole numbers, ties to even, for |x| < 2^22: above 2^23 a float32 has no fraction left."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def encode_e4m3(x):
    """The byte of the nearest float8 e4m3, ties to even, for |x| <= 448: the interpreter's cast is wrong.

    Below 2^-6 the sum with 2^14 leaves a multiple of 2^-9 in the low bits (as in c10/util/Float8_e4m3fn.h).
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    normal = (size + 0x7FFFF + ((size >> 20) & 1) - (120 << 23)) >> 20
    tiny = (tl.abs(x) + 16384.0).to(tl.int32, bitcast=True) - (141 << 23)
    code = tl.where(size < (121 << 23), tiny, normal) | ((bits >> 24) & 0x80)
    return code.to(tl.uint8)


@triton.jit
def _spread(low, high, matrix, half, D: tl.constexpr, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """The half of [low, high] @ R that begins at column `half`. matrix: R x sqrt(D), of 1 and -1."""
    row = tl.arange(0, BLOCK)
    at = matrix + row[:, None] * D + half + tl.arange(0, BLOCK)[None, :]
    inside = (row < D // 2)[:, None] & (row < D // 2)[None, :]
    upper = tl.load(at, mask=inside, other=0.0).to(COMPUTE)
    lower = tl.load(at + (D // 2) * D, mask=inside, other=0.0).to(COMPUTE)
    product = tl.dot(low.to(COMPUTE), upper, input_precision="ieee")
    return product + tl.dot(high.to(COMPUTE), lower, input_precision="ieee")


@triton.jit
def _rotate_store(
    query, key_data, value_data, key_scales, value_scales, qkv, norm, cos, sin, slots, matrix,
    eps, inverse_root, qkv_row, key_page, key_slot, key_head, value_page, value_slot, value_head,
    scale_page, scale_slot, scale_head,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, NORM: tl.constexpr, DTYPE: tl.constexpr, LARGEST: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    QUERY_BLOCKS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    KEY_BLOCKS: tl.constexpr = (KV_HEADS + BLOCK_H - 1) // BLOCK_H
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    is_query = part < QUERY_BLOCKS
    is_value = part >= QUERY_BLOCKS + KEY_BLOCKS
    slot = tl.load(slots + token).to(tl.int64)
    skipped = tl.where(is_query, 0, tl.where(is_value, QUERY_BLOCKS + KEY_BLOCKS, QUERY_BLOCKS))
    head = (part - skipped) * BLOCK_H + tl.arange(0, BLOCK_H)
    used = head < tl.where(is_query, HEADS, KV_HEADS)
    first = tl.where(is_query, 0, tl.where(is_value, HEADS + KV_HEADS, HEADS))
    d = tl.arange(0, BLOCK)
    inside = used[:, None] & (d < HALF)[None, :]
    at = qkv + token * qkv_row + (first + head)[:, None] * D + d[None, :]
    low = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if not is_value:
        if NORM:
            factor = tl.rsqrt((tl.sum(low * low, 1) + tl.sum(high * high, 1)) / D + eps)[:, None]
            weight = norm + (first + head)[:, None] * D + d[None, :]
            low *= factor * tl.load(weight, mask=inside, other=0.0).to(tl.float32)
            high *= factor * tl.load(weight + HALF, mask=inside, other=0.0).to(tl.float32)
        angle = token * D + d
        cos_low = tl.load(cos + angle, mask=d < HALF, other=0.0).to(tl.float32)[None, :]
        cos_high = tl.load(cos + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)[None, :]
        # The sine has the sign of the first half folded in.
        sin_low = tl.load(sin + angle, mask=d < HALF, other=0.0).to(tl.float32)[None, :]
        sin_high = tl.load(sin + angle + HALF, mask=d < HALF, other=0.0).to(tl.float32)[None, :]
        turned = low * cos_low + high * sin_low
        high = high * cos_high + low * sin_high
        low = turned
    if is_query:
        found = query + token * (HEADS * D) + head[:, None] * D + d[None, :]
        tl.store(found, low, mask=inside)
        tl.store(found + HALF, high, mask=inside)
        return
    if slot < 0:
        return
    page = slot // BLOCK_SIZE
    offset = slot % BLOCK_SIZE
    if is_value:
        data = value_data + page * value_page + offset * value_slot + head[:, None] * value_head + d[None, :]
    else:
        data = key_data + page * key_page + offset * key_slot + head[:, None] * key_head + d[None, :]
    if LARGEST == 0:
        tl.store(data, low, mask=inside)
        tl.store(data + HALF, high, mask=inside)
    else:
        if DTYPE == "int4":
            spread = _spread(low, high, matrix, 0, D, BLOCK, COMPUTE) * inverse_root
            high = _spread(low, high, matrix, HALF, D, BLOCK, COMPUTE) * inverse_root
            low = spread
        most = tl.maximum(tl.max(tl.abs(low), 1), tl.max(tl.abs(high), 1))
        scale = tl.div_rn(tl.maximum(most, 1e-12), LARGEST + tl.zeros((BLOCK_H,), tl.float32))
        low = tl.div_rn(low, scale[:, None] + tl.zeros((BLOCK_H, BLOCK), tl.float32))
        high = tl.div_rn(high, scale[:, None] + tl.zeros((BLOCK_H, BLOCK), tl.float32))
        if DTYPE == "int4":
            code = tl.clamp(round_even(low + 7.5), 0.0, 15.0).to(tl.int32)
            code |= tl.clamp(round_even(high + 7.5), 0.0, 15.0).to(tl.int32) << 4
            tl.store(data, code.to(tl.uint8), mask=inside)
        elif DTYPE == "int8":
            tl.store(data, round_even(low).to(tl.int8), mask=inside)
            tl.store(data + HALF, round_even(high).to(tl.int8), mask=inside)
        else:
            tl.store(data, encode_e4m3(low), mask=inside)
            tl.store(data + HALF, encode_e4m3(high), mask=inside)
        scale_at = page * scale_page + offset * scale_slot + head * scale_head
        if is_value:
            tl.store(value_scales + scale_at, scale, mask=used)
        else:
            tl.store(key_scales + scale_at, scale, mask=used)


def rotate_and_store(
    qkv: Tensor,
    angles: tuple[Tensor, Tensor],
    slots: Tensor,
    norm: RMSNorm | None,
    keys: PagedTensor,
    values: PagedTensor,
) -> Tensor:
    """Query rows [T, H, D], rotated, from qkv [T, H + 2 KV, D]; keys and values go to their slots [T].

    Slot -1: nowhere. angles: cos and sin of each row, [T, 1, D], contiguous. norm: of the query and key heads, weights
    [H + KV, D].
    """
    tokens, all_heads, head_dim = qkv.shape
    kv_heads, dtype = keys.data.shape[2], keys.dtype
    heads = all_heads - 2 * kv_heads
    query = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    scales = (0, 0, 0) if keys.scales is None else keys.scales.stride()
    matrix = rotation(head_dim, qkv.device).sign() if dtype == "int4" else None
    _rotate_store[(tokens, triton.cdiv(heads, BLOCK_H) + 2 * triton.cdiv(kv_heads, BLOCK_H))](
        query, keys.data, values.data, keys.scales, values.scales, qkv,
        None if norm is None else norm.weight, *angles, slots, matrix, 0.0 if norm is None else norm.eps,
        head_dim**-0.5, qkv.stride(0), *keys.data.stride()[:3], *values.data.stride()[:3], *scales,
        HEADS=heads, KV_HEADS=kv_heads, D=head_dim, BLOCK=max(16, triton.next_power_of_2(head_dim // 2)),
        BLOCK_H=BLOCK_H, BLOCK_SIZE=keys.data.shape[1], NORM=norm is not None, DTYPE=dtype,
        LARGEST=LARGEST.get(dtype, 0.0), COMPUTE=compute_dtype(qkv.dtype), num_warps=4,
    )  # fmt: skip
    return query
