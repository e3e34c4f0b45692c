"""Weights in blocks of 32 inputs, as GGML has them: where the numbers lie, and products with them in plain NumPy.

Weights (k, n) are strips of 16 outputs: records (n_pad / 16, k / 32), or their bytes, n padded with zeros to a
multiple of 32. Products are made of int8 blocks of rows: `quantise_rows`.
"""

from typing import NamedTuple

import numpy as np

Array = np.ndarray
#: (numbers int8 (m, k), scales float32 (m, k / 32), sums of numbers int32 (m, k / 32)) of m rows
Rows = tuple[Array, Array, Array]

BLOCK, STRIP = 32, 16
#: blocks of rows whose largest magnitude is below this are zeros: its inverse must not overflow
LEAST = 2.0**-100
_FACTORS, _WORDS = ("factor", "<f2", STRIP), 8
#: kind -> its record. `numbers` are (words of four inputs, outputs, 4): bytes, or two of four bits each, whose lower
#: half belongs to word i, the upper to word i + 4
RECORDS = {
    "q8_0": np.dtype([_FACTORS, ("numbers", "u1", (_WORDS, STRIP, 4))]),
    "q4_0": np.dtype([_FACTORS, ("numbers", "u1", (_WORDS // 2, STRIP, 4))]),
    "q4_1": np.dtype([_FACTORS, ("least", "<f2", STRIP), ("numbers", "u1", (_WORDS // 2, STRIP, 4))]),
}
#: a weight is factor * (number - ADDED) + least
ADDED = {"q8_0": 128, "q4_0": 8, "q4_1": 0}
BLOCK_KINDS = tuple(RECORDS)


class Layer(NamedTuple):
    """A layer of weights in blocks of `kind`, n outputs, and what is added to what they give."""

    kind: str
    weights: Array
    n: int
    bias: Array | None


def unpacked(kind: str, records: Array) -> Array:
    """Numbers as they are stored (strips, k / 32, 16 outputs, 32 inputs) uint8, of records (strips, k / 32)."""
    numbers = records["numbers"]
    if kind != "q8_0":
        numbers = np.concatenate([numbers & 15, numbers >> 4], axis=2)
    return np.moveaxis(numbers, 3, 2).reshape(*records.shape, STRIP, BLOCK)


def widened(kind: str, records: Array) -> Array:
    """Weights (strips, k / 32, 16 outputs, 32 inputs) float32 of records (strips, k / 32), as GGML widens them."""
    wide = unpacked(kind, records).astype(np.float32)
    wide -= np.float32(ADDED[kind])
    wide *= records["factor"].astype(np.float32)[..., None]
    if kind == "q4_1":
        wide += records["least"].astype(np.float32)[..., None]
    return wide


def widen_blocks(kind: str, weights: Array, first: int, out: Array) -> Array:
    """out (k, w) = columns first .. first + w of weights in blocks, as float32, in place and returned.

    weights: bytes (strips, k / 32, bytes of a block) of `kind`; first: a multiple of 16.
    """
    strips = slice(first // STRIP, -(-(first + out.shape[1]) // STRIP))
    wide = widened(kind, weights[strips].view(RECORDS[kind])[..., 0])
    out[...] = np.moveaxis(wide, (1, 3), (0, 1)).reshape(len(out), -1)[:, : out.shape[1]]
    return out


def times_blocks(kind: str, x: Array, weights: Array, out: Array) -> Array:
    """out (m, n) = x (m, k) float32 @ weights in blocks, as `widen_blocks` takes them, in place and returned."""
    wide = widen_blocks(kind, weights, 0, np.empty((x.shape[1], out.shape[1]), np.float32))
    out[...] = x.astype(np.float64) @ wide
    return out


def quantise_rows(x: Array) -> Rows:
    """x (m, k) float32 in int8 blocks of 32: a block's scale is its largest magnitude over 127; 0 for a block of zeros.

    A number is x * (127 / largest), rounded to nearest, ties to even. NaN and infinite numbers give NaN scales.
    """
    m, k = x.shape
    blocks = x.reshape(m, k // BLOCK, BLOCK).astype(np.float32)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    with np.errstate(all="ignore"):
        factor = np.where(largest >= LEAST, np.float32(127) / largest, np.float32(0))
        numbers = np.rint(blocks * factor)
        scales = np.where(np.isfinite(largest), largest / np.float32(127), np.float32(np.nan))
    q = np.where(np.isfinite(numbers), numbers, 0).astype(np.int8)
    return q.reshape(m, k), scales[..., 0], q.sum(axis=2, dtype=np.int32)


def multiply_blocks(kind: str, rows: Rows, weights: Array, out: Array) -> Array:
    """out (m, n) = rows (m, k), as `quantise_rows` gives them, @ weights (k, n) in blocks, in place and returned.

    weights: as `widen_blocks` takes them. Per block: factor * scale * (exact sum of products of the numbers, what was
    added to stored ones taken off) + least * scale * sum of the row's.
    """
    q, scales, sums = rows
    m, n_blocks = scales.shape
    records = weights.view(RECORDS[kind])[..., 0]  # (strips, n_blocks)
    numbers = unpacked(kind, records).astype(np.int64) - ADDED[kind]
    dots = np.einsum("mbi,sboi->bmso", q.reshape(m, n_blocks, BLOCK).astype(np.int64), numbers)
    dots = dots.reshape(n_blocks, m, STRIP * len(records))
    factors, least = (
        np.moveaxis(records[name].astype(np.float64), 1, 0).reshape(n_blocks, -1)
        if name in (records.dtype.names or ())
        else 0
        for name in ("factor", "least")
    )
    total = np.einsum("bmn,bn,mb->mn", dots, factors, scales.astype(np.float64))
    if kind == "q4_1":
        total += (scales.astype(np.float64) * sums) @ least
    out[...] = total[:, : out.shape[1]]
    return out
