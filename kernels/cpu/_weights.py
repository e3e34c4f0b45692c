"""Matrices in narrow types: widened a tile at a time, or multiplied by one vector as they are read.

A product with one vector is bound by memory, so it reads the narrow numbers once and widens them in registers.
"""

import numpy as np
from numba import types
from numba.extending import overload

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import FASTMATH, f32, i32

Array = np.ndarray
u32 = np.uint32


def widen(values: Array, scale: Array | None, first: int, out: Array) -> Array:
    """out (m, w) = columns first .. first + w of values (m, n) in float32, times scale (n,); see reference.widen."""
    factors, scaled = _factors(scale)
    _widen(_bits(values), factors, scaled, first, out)
    return out


def vecmat(x: Array, values: Array, scale: Array | None, out: Array) -> Array:
    """out (n,) = x (m,) @ values (m, n) * scale (n,); see reference.vecmat."""
    factors, scaled = _factors(scale)
    _vecmat(x, _bits(values), factors, scaled, out)
    return out


def matvec(values: Array, scale: Array | None, x: Array, out: Array) -> Array:
    """out (m,) = values (m, n) @ x (n,) * scale (m,); see reference.matvec."""
    factors, scaled = _factors(scale)
    _matvec(_bits(values), factors, scaled, x, out)
    return out


def _bits(values):
    """Read-only, so that kernels are compiled once for mapped files and for arrays; float16 as int16."""
    view = values.view(np.int16) if values.dtype == np.float16 else values.view()
    view.flags.writeable = False
    return view


_NONE = np.ones(1, np.float32)


def _factors(scale):
    return (_NONE, False) if scale is None else (scale, True)


def number(value):
    """A stored number as float32, told apart by type: float32, int8, uint16 (bfloat16) or int16 (float16)."""
    raise NotImplementedError


@overload(number)
def _number_of(value):
    if value == types.float32:
        return lambda value: value
    if value == types.int8:
        return lambda value: f32(value)
    if value == types.uint16:
        return lambda value: u32(u32(value) << u32(16)).view(f32)

    def half(value):  # exponents are shifted by multiplying, which is exact and treats subnormal numbers alike
        bits = i32(value)
        magnitude = i32(i32(bits & i32(0x7FFF)) << i32(13)).view(f32) * f32(2.0**112)
        return i32(f32(magnitude).view(i32) | i32(bits & i32(-0x80000000))).view(f32)

    return half


@compiled(fastmath=FASTMATH, error_model="numpy")
def _widen(values, scale, scaled, first, out):
    for i in range(out.shape[0]):
        row, wide = values[i, first : first + out.shape[1]], out[i]
        if scaled:
            factor = scale[first : first + out.shape[1]]
            for j in range(wide.size):
                wide[j] = number(row[j]) * factor[j]
        else:
            for j in range(wide.size):
                wide[j] = number(row[j])


@compiled(fastmath=FASTMATH, error_model="numpy")
def _vecmat(x, values, scale, scaled, out):
    m, n = values.shape
    out[:] = 0
    single = m % 8
    for i in range(single):
        row, factor = values[i], x[i]
        for j in range(n):
            out[j] += factor * number(row[j])
    for i in range(single, m, 8):  # eight rows at a time: an eighth of the traffic of the running sums
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        e, f, g, h = values[i + 4], values[i + 5], values[i + 6], values[i + 7]
        x0, x1, x2, x3, x4, x5, x6, x7 = x[i], x[i + 1], x[i + 2], x[i + 3], x[i + 4], x[i + 5], x[i + 6], x[i + 7]
        for j in range(n):
            low = x0 * number(a[j]) + x1 * number(b[j]) + x2 * number(c[j]) + x3 * number(d[j])
            high = x4 * number(e[j]) + x5 * number(f[j]) + x6 * number(g[j]) + x7 * number(h[j])
            out[j] += low + high
    if scaled:
        for j in range(n):
            out[j] *= scale[j]


@compiled(fastmath=FASTMATH, error_model="numpy")
def _matvec(values, scale, scaled, x, out):
    m, n = values.shape
    single = m % 4
    for i in range(single):
        row, total = values[i], f32(0)
        for j in range(n):
            total += number(row[j]) * x[j]
        out[i] = total
    for i in range(single, m, 4):  # four rows share what is read of x
        a, b, c, d = values[i], values[i + 1], values[i + 2], values[i + 3]
        s, t, u, v = f32(0), f32(0), f32(0), f32(0)
        for j in range(n):
            s += number(a[j]) * x[j]
            t += number(b[j]) * x[j]
            u += number(c[j]) * x[j]
            v += number(d[j]) * x[j]
        out[i], out[i + 1], out[i + 2], out[i + 3] = s, t, u, v
    if scaled:
        for i in range(m):
            out[i] *= scale[i]
