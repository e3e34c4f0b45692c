"""Products in bfloat16 and int8 in plain NumPy: the specification of kernels/cpu/products and kernels/cpu/flash.

Products of rounded numbers are exact in float64, so that only the order of float32 sums can differ from these.
"""

import numpy as np

from astra_mpi.kernels import reference
from astra_mpi.kernels.near import Near
from astra_mpi.kernels.reference import activate, activate_gated

Array = np.ndarray

#: inputs that share a factor of an int8 row
GROUP = 256
#: smaller steps of int8 count as none
TINY = np.finfo(np.float32).tiny


def round_bfloat16(x: Array) -> Array:
    """float32 -> the nearest bfloat16, ties to even, as float32; NaN stays NaN, what is too large becomes infinite."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), x, rounded).reshape(x.shape)


def quantise_rows(x: Array) -> tuple[Array, Array]:
    """x (m, k) -> integers -127 .. 127 (m, k) float32, and their factors (m, k) float32, one for each GROUP of a row.

    The factor is the group's largest magnitude over 127; it is NaN for groups with NaN or infinite numbers, and 0 below
    float32's full precision.
    """
    starts = np.arange(0, x.shape[1], GROUP)
    if not len(starts):
        return x, x
    factor = (np.maximum.reduceat(np.abs(x), starts, axis=1) / np.float32(127)).astype(np.float32)
    factor = np.repeat(factor, np.diff([*starts, x.shape[1]]), axis=1)
    zero = factor < TINY
    inverse = np.where(zero, np.float32(0), np.float32(1) / np.where(zero, np.float32(1), factor))
    factor = np.where(np.isinf(factor), np.float32(np.nan), factor)
    return np.rint(x * inverse), np.where(zero, np.float32(0), factor)


def quantise_columns(weight: Array) -> tuple[Array, Array]:
    """weight (k, n) -> integers -127 .. 127 (k, n) float32 and the factor (n,) float32 of each column."""
    factor = (np.abs(weight).max(axis=0, initial=0) / np.float32(127)).astype(np.float32)
    factor = np.where(factor < TINY, np.float32(1), factor)
    return np.rint(weight / factor), factor


def multiply(x: Array, weight: Array, kind: str) -> Array:
    """x (m, k) @ weight (k, n), both rounded to `kind`, summed up in float64 -> (m, n) float64."""
    if kind == "bfloat16":
        return round_bfloat16(x).astype(np.float64) @ round_bfloat16(weight)
    rows, row_factor = quantise_rows(x)
    columns, column_factor = quantise_columns(weight)
    return (rows.astype(np.float64) * row_factor) @ columns * column_factor


def layer(
    x: Array,
    weight: Array,
    kind: str,
    bias: Array | None = None,
    activation: str = "",
    gate: Array | None = None,
    gate_bias: Array | None = None,
) -> Array:
    """act(x (m, k) @ weight (k, n) + bias), with a gate (x @ weight + bias) * act(x @ gate + gate_bias): float32."""
    y = multiply(x, weight, kind).astype(np.float32)
    if gate is not None:
        return activate_gated(y, bias, multiply(x, gate, kind).astype(np.float32), gate_bias, activation)
    if activation:
        return activate(y, bias, activation)
    return y if bias is None else y + bias


def packed_words(weight: Array, kind: str) -> Array:
    """weight (k, n) as [n_pad / 16][k_pad / w][16][w]: uint16 of bfloat16, or uint8 of integers + 128.

    w numbers fill 32 bits; n is padded to a multiple of 32, k to one of 16 w, with zeros.
    """
    if kind == "bfloat16":
        numbers, w, zero = (round_bfloat16(weight).view(np.uint32) >> 16).astype(np.uint16), 2, 0
    else:
        numbers, w, zero = (quantise_columns(weight)[0] + 128).astype(np.uint8), 4, 128
    k, n = weight.shape
    k_pad, n_pad = max(1, -(-k // (16 * w))) * 16 * w, max(1, -(-n // 32)) * 32
    padded = np.full((k_pad, n_pad), zero, numbers.dtype)
    padded[:k, :n] = numbers
    return np.ascontiguousarray(padded.reshape(k_pad // w, w, n_pad // 16, 16).transpose(2, 0, 3, 1))


def attend(
    q: Array,
    k: Array,
    v: Array,
    key_bias: Array | None,
    causal: int | None,
    acc: Array,
    row_max: Array,
    row_sum: Array,
    near: Near | None = None,
) -> None:
    """`reference.attend` of q, k and v in bfloat16, in place.

    A kernel rounds weights for the second product too, relative to a maximum on the way: what it adds to acc differs by
    at most 2^-8 of sum_j exp(s_j - M) |v_j|. Sums of weights are of those before rounding.
    """
    q, k, v = (round_bfloat16(factor) for factor in (q, k, v))
    reference.attend(q, k, v, key_bias, causal, acc, row_max, row_sum, near)
