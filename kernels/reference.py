"""Every kernel in plain NumPy: the specification the other backends are tested against.

Symbols: n tokens, D model width, C codes per token (G groups or M stages), K codes per codebook, W width of an entry,
E width of a table row, H query heads, Hkv key/value heads, a queries, m keys, d head width.
"""

import math

import numpy as np

from astra_mpi.kernels.blocks import multiply_blocks, quantise_rows, times_blocks, widen_blocks  # noqa: F401
from astra_mpi.kernels.integers import integer_product  # noqa: F401
from astra_mpi.kernels.reference_attention import attend, attend_codes, attend_rows, finish  # noqa: F401
from astra_mpi.kernels.reference_codes import (  # noqa: F401
    add_entries,
    bit_places,
    check_message,
    code_dtype,
    code_sums,
    count_codes,
    decode_grouped,
    decode_residual,
    encode_grouped,
    encode_levels,
    encode_residual,
    gram_sum,
    pack,
    pack_columns,
    segment_sum,
    table_sum,
    unpack,
    unpack_columns,
    wide,
)

Array = np.ndarray

_erf = np.vectorize(math.erf, otypes=[np.float64])


def dense(
    x: Array, weight: Array, out: Array, bias: Array | None = None, activation: str = "", add: bool = False
) -> Array:
    """out (m, n) = act(x (m, k) @ weight (k, n) + bias (n,)), added to what is there if `add`, and returned.

    out may be row-strided; activation: "", or one of `activate`.
    """
    made = x @ weight
    if activation:
        activate(made, bias, activation)
    elif bias is not None:
        made += bias
    out[...] = out + made if add else made
    return out


def layer_norm(x: Array, weight: Array, bias: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, means over the last axis of x (n, D)."""
    x64 = x.astype(np.float64)
    centred = x64 - x64.mean(axis=1, keepdims=True)
    variance = (centred**2).mean(axis=1, keepdims=True)
    return _into(out, centred / np.sqrt(variance + eps) * weight + bias)


def rms_norm(x: Array, weight: Array, eps: float, out: Array | None = None) -> Array:
    """(n, D): x / sqrt(mean(x^2) + eps) * weight, the mean over the last axis of x (n, D)."""
    x64 = x.astype(np.float64)
    return _into(out, x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + eps) * weight)


def widen(values: Array, scale: Array | None, first: int, out: Array) -> Array:
    """out (m, w) = columns first .. first + w of values (m, n), as float32, times scale (n,), in place and returned.

    values: float16, int8, or uint16, which is bfloat16: the upper half of a float32. C-contiguous. scale None: 1.
    """
    columns = slice(first, first + out.shape[1])
    out[...] = wide(values[:, columns]) * (1 if scale is None else scale[columns])
    return out


def vecmat(x: Array, values: Array, scale: Array | None, out: Array) -> Array:
    """out (n,) = x (m,) @ values (m, n), times scale (n,), in place and returned; values and scale as in `widen`."""
    out[...] = x @ wide(values) * (1 if scale is None else scale)
    return out


def matvec(values: Array, scale: Array | None, x: Array, out: Array) -> Array:
    """out (m,) = values (m, n) @ x (n,), times scale (m,), in place and returned; values and scale as in `widen`."""
    out[...] = wide(values) @ x * (1 if scale is None else scale)
    return out


def _into(out: Array | None, values: Array) -> Array:
    if out is None:
        return values.astype(np.float32)
    out[...] = values
    return out


def add_residual(x: Array, y: Array, bias: Array | None) -> Array:
    """x (n, D) += y (n, D) + bias (D,), in place and returned."""
    x[...] = x.astype(np.float64) + y + (0 if bias is None else bias)
    return x


def scale_add(x: Array, scale: Array, bias: Array) -> Array:
    """x (n, D) = x * scale (D,) + bias (D,), in place and returned."""
    x[...] = x.astype(np.float64) * scale + bias
    return x


def add_layer_norm(
    x: Array, y: Array, bias: Array | None, weight: Array, norm_bias: Array, eps: float, out: Array
) -> Array:
    """x (n, D) += y + bias in place; out = layer_norm(x), returned. `out` may be y, not x."""
    return layer_norm(add_residual(x, y, bias), weight, norm_bias, eps, out)


def add_rms_norm(x: Array, y: Array, bias: Array | None, weight: Array, eps: float, out: Array) -> Array:
    """x (n, D) += y + bias in place; out = rms_norm(x), returned. `out` may be y, not x."""
    return rms_norm(add_residual(x, y, bias), weight, eps, out)


def rotate(x: Array, turns: Array, n_heads: int) -> Array:
    """Turn the first `n_heads` heads of x (n, W) by each row's angles, in place and returned (RoPE, arXiv 2104.09864).

    turns (n, d): cosines of d / 2 angles, then their sines. A head's numbers a = 0 .. d/2 - 1 make a pair with those
    d / 2 further: (u, v) -> (u cos - v sin, v cos + u sin).
    """
    d_half, width = turns.shape[1] // 2, n_heads * turns.shape[1]
    heads = x[:, :width].reshape(len(x), n_heads, 2, d_half)
    u, v = heads[:, :, 0].astype(np.float64), heads[:, :, 1].astype(np.float64)
    cos, sin = turns[:, None, :d_half], turns[:, None, d_half:]
    x[:, :width] = np.stack([u * cos - v * sin, v * cos + u * sin], axis=2).reshape(len(x), width)
    return x


def activate(x: Array, bias: Array | None, name: str) -> Array:
    """x = act(x + bias), in place and returned; x (n, F), bias (F,) or None.

    gelu: x * Phi(x), Phi the normal distribution function; gelu_tanh: its tanh form (arXiv 1606.08415);
    relu: max(x, 0); silu: x / (1 + exp(-x)); quick_gelu: x / (1 + exp(-1.702 x)). ValueError for another name.
    """
    y = x.astype(np.float64) if bias is None else x.astype(np.float64) + bias
    if name == "gelu":
        x[...] = 0.5 * y * (1 + _erf(y / math.sqrt(2))) if y.size else y
    elif name == "gelu_tanh":
        x[...] = 0.5 * y * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    elif name == "relu":
        x[...] = np.maximum(y, 0)
    elif name == "silu":
        x[...] = y * 0.5 * (1 + np.tanh(y / 2))
    elif name == "quick_gelu":
        x[...] = y * 0.5 * (1 + np.tanh(1.702 * y / 2))
    else:
        raise ValueError(f"unknown activation {name!r}")
    return x


def activate_gated(x: Array, bias: Array | None, gate: Array, gate_bias: Array | None, name: str) -> Array:
    """x = (x + bias) * act(gate + gate_bias), in place and returned; x, gate (n, F), biases (F,) or None.

    What becomes of `gate` is not defined. With silu this is SwiGLU (arXiv 2002.05202).
    """
    x[...] = (x.astype(np.float64) + (0 if bias is None else bias)) * activate(gate.copy(), gate_bias, name)
    return x


def warm_up() -> None:
    """Nothing: plain NumPy has nothing to compile."""
