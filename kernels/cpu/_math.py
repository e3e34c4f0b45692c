"""Scalar functions that LLVM turns into SIMD code when a kernel inlines them in a loop.

Numba has no vector library here: a call of math.exp or math.erf would keep a loop scalar, ten times slower.
"""

import numpy as np
from numba import njit

#: What LLVM may assume. Neither nnan nor ninf: -inf is an ordinary score, and NaN must stay NaN.
FASTMATH = {"reassoc", "contract", "arcp", "nsz"}

f32 = np.float32
i32 = np.int32


@njit(fastmath=FASTMATH)
def exp(x):
    """e^x in float32, relative error below 3e-7 for -87 <= x <= 88, constant beyond (Cephes expf)."""
    x = min(max(x, f32(-87.0)), f32(88.0))
    n = np.floor(x * f32(1.4426950408889634) + f32(0.5))
    r = x - n * f32(0.693359375) - n * f32(-2.12194440e-4)  # x = n ln 2 + r, ln 2 in two parts
    p = f32(1.9875691500e-4)
    p = p * r + f32(1.3981999507e-3)
    p = p * r + f32(8.3334519073e-3)
    p = p * r + f32(4.1665795894e-2)
    p = p * r + f32(1.6666665459e-1)
    p = p * r + f32(5.0000001201e-1)
    p = p * r * r + r + f32(1.0)
    return p * i32((i32(n) + i32(127)) << i32(23)).view(f32)


@njit(fastmath=FASTMATH)
def erf(x):
    """erf in float32, absolute error below 5e-7 (rational minimax on [-4, 4], the coefficients of Eigen)."""
    x = min(max(x, f32(-4.0)), f32(4.0))
    y = x * x
    p = f32(-2.72614225801306e-10)
    p = p * y + f32(2.77068142495902e-08)
    p = p * y + f32(-2.10102402082508e-06)
    p = p * y + f32(-5.69250639462346e-05)
    p = p * y + f32(-7.34990630326855e-04)
    p = p * y + f32(-2.95459980854025e-03)
    p = p * y + f32(-1.60960333262415e-02)
    q = f32(-1.45660718464996e-05)
    q = q * y + f32(-2.13374055278905e-04)
    q = q * y + f32(-1.68282697438203e-03)
    q = q * y + f32(-7.37332916720468e-03)
    q = q * y + f32(-1.42647390514189e-02)
    return x * p / q


@njit(fastmath=FASTMATH)
def ordered_bits(x):
    """An int32 that sorts as the float32 does: LLVM vectorises integer minima, but not those of floats with NaN."""
    return _flip(f32(x).view(i32))


@njit(fastmath=FASTMATH)
def from_ordered_bits(bits):
    """The float32 that `ordered_bits` came from."""
    return i32(_flip(i32(bits))).view(f32)


@njit
def _flip(bits):
    """Reverse the order of the negative numbers; its own inverse. Numba widens each result, hence the casts."""
    return i32(bits ^ i32(i32(bits >> i32(31)) & i32(0x7FFFFFFF)))
