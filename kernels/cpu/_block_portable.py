"""Weights in blocks, where no instruction multiplies them as they are: widened, or multiplied in integers."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import f32, i32
from astra_mpi.kernels.cpu._memory import byte_rows, float_rows, floats, integer_rows, unsigned_bytes

_BLOCK, _STRIP = 32, 16
#: of a strip's block, by kind
_BYTES = (544, 288, 320)


@compiled(error_model="numpy")
def half(low, high):
    """A float16 by its two bytes, as float32."""
    bits = i32(i32(high) << i32(8)) | i32(low)
    # exponents are shifted by multiplying, which is exact and treats subnormal numbers alike
    magnitude = i32(i32(bits & i32(0x7FFF)) << i32(13)).view(f32) * f32(2.0**112)
    return i32(f32(magnitude).view(i32) | i32(i32(bits & i32(0x8000)) << i32(16))).view(f32)


@compiled(error_model="numpy")
def read_block(kind, block, numbers, factors, least):
    """A strip's block (bytes) -> numbers (32, 16) int32, what was added to them taken off, factors and least (16,)."""
    for j in range(_STRIP):
        factors[j] = half(block[2 * j], block[2 * j + 1])
        least[j] = half(block[32 + 2 * j], block[33 + 2 * j]) if kind == 2 else f32(0)
    before = 64 if kind == 2 else 32
    for i in range(_BLOCK if kind == 0 else _BLOCK // 2):
        place = before + i // 4 * 64 + i % 4
        for j in range(_STRIP):
            byte = i32(block[place + 4 * j])
            if kind == 0:
                numbers[i, j] = byte - i32(128)
            else:
                added = i32(8) if kind == 1 else i32(0)
                numbers[i, j] = (byte & i32(15)) - added
                numbers[i + 16, j] = (byte >> i32(4)) - added


@compiled(error_model="numpy")
def widen_strips(kind, weights, first, out):
    """out (k, w) = columns first .. first + w of weights (strips, k / 32, bytes); no rounding is fused, as in GGML."""
    numbers, factors, least = np.empty((_BLOCK, _STRIP), np.int32), np.empty(_STRIP, f32), np.empty(_STRIP, f32)
    for begin in range(0, out.shape[1], _STRIP):
        width = min(_STRIP, out.shape[1] - begin)
        for b in range(weights.shape[1]):
            read_block(kind, weights[(first + begin) // _STRIP, b], numbers, factors, least)
            for i in range(_BLOCK):
                row = out[_BLOCK * b + i, begin : begin + width]
                if kind == 2:
                    for j in range(width):
                        row[j] = f32(numbers[i, j]) * factors[j] + least[j]
                else:
                    for j in range(width):
                        row[j] = f32(numbers[i, j]) * factors[j]


@compiled(error_model="numpy")
def portable_strips(kind, m, k, q, scales, sums, weights, n, out, stride, index, count):
    """`_blocks.multiply_strips` without instructions of its own."""
    n_bytes = _BYTES[kind]
    n_strips, n_blocks = -(-n // _STRIP), k // _BLOCK
    inputs = byte_rows(q, m, k)
    row_scales, row_sums = float_rows(scales, m, n_blocks), integer_rows(sums, m, n_blocks)
    numbers, factors, least = np.empty((_BLOCK, _STRIP), np.int32), np.empty(_STRIP, f32), np.empty(_STRIP, f32)
    totals, dots = np.empty((m, _STRIP), f32), np.empty(_STRIP, np.int32)
    for strip in range(n_strips * index // count, n_strips * (index + 1) // count):
        totals[:] = f32(0)
        for b in range(n_blocks):
            block = unsigned_bytes(weights + (strip * n_blocks + b) * n_bytes, n_bytes)
            read_block(kind, block, numbers, factors, least)
            for r in range(m):
                row, scale, total = inputs[r, _BLOCK * b : _BLOCK * b + _BLOCK], row_scales[r, b], totals[r]
                dots[:] = 0
                for i in range(_BLOCK):
                    number = i32(row[i])
                    for j in range(_STRIP):
                        dots[j] += number * numbers[i, j]
                share = scale * f32(row_sums[r, b])
                for j in range(_STRIP):
                    total[j] += f32(dots[j]) * (factors[j] * scale) + least[j] * share
        width = min(_STRIP, n - _STRIP * strip)
        for r in range(m):
            line = floats(out + r * stride + 4 * _STRIP * strip, width)
            for j in range(width):
                line[j] = totals[r, j]
