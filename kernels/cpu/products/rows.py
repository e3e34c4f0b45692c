"""Rows of activations as narrow products take them: rounded to bfloat16, or quantised to int8 by groups."""

import numpy as np
from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import f32, i32
from astra_mpi.kernels.cpu._memory import floats
from astra_mpi.kernels.cpu.products.layout import GROUP, ROUND, TINY, ZERO, to_bfloat16


def narrow_rows(at, stride, n_rows, k, panel, factors, offsets):
    """Fill panel (>= n_rows, k_pad) from n_rows rows of k float32, `stride` bytes apart.

    panel: uint16 (bfloat16) or int8, which tells the type. int8 takes GROUP numbers of a row at a time, and fills
    factors (groups, rows) float32, the largest magnitude over 127, and offsets (groups, rows) int32, 128 times the sum
    of the integers.
    """
    raise NotImplementedError


@overload(narrow_rows)
def _narrow_rows(at, stride, n_rows, k, panel, factors, offsets):
    if panel.dtype == types.uint16:
        return lambda at, stride, n_rows, k, panel, factors, offsets: _rounded(at, stride, n_rows, k, panel)
    return lambda at, stride, n_rows, k, panel, factors, offsets: _quantised(
        at, stride, n_rows, k, panel, factors, offsets
    )


@compiled()
def _rounded(at, stride, n_rows, k, panel):
    for i in range(n_rows):
        row, narrow = floats(at + i * stride, k), panel[i]
        for j in range(k):
            narrow[j] = to_bfloat16(row[j])
        narrow[k:] = 0


@compiled()
def _quantised(at, stride, n_rows, k, panel, factors, offsets):
    for i in range(n_rows):
        narrow = panel[i]
        narrow[k:] = 0
        for g in range(factors.shape[0]):
            n = max(0, min(GROUP, k - GROUP * g))
            row = floats(at + i * stride + 4 * GROUP * g, n)
            factors[g, i], offsets[g, i] = _group(row, narrow[GROUP * g : GROUP * g + n])


@compiled(error_model="numpy")
def _group(row, narrow):
    """Fill narrow from a row's numbers -> their factor and offset."""
    bits = row.view(np.int32)
    largest = i32(0)
    for j in range(row.size):  # as integers: NaN is above all numbers, and LLVM vectorises it
        largest = max(largest, i32(bits[j] & i32(0x7FFFFFFF)))
    step = f32(i32(largest).view(f32) / f32(127))
    inverse = f32(0) if step < TINY else f32(f32(1) / step)
    total = i32(0)
    for j in range(row.size):
        rounded = f32(f32(row[j] * inverse) + ROUND)
        q = i32(i32(rounded.view(np.int32)) - i32(0x4B400000))
        narrow[j] = np.int8(q)
        total = i32(total + q)
    factor = f32(0) if step < TINY else f32(step + (step - step))  # NaN where a number is infinite
    return factor, i32(i32(ZERO) * total)
