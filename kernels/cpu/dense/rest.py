"""All that follows attention in a block, in one call: of few rows, what is between four calls takes as long as one."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import float_rows, floats
from astra_mpi.kernels.cpu._rows import ACTIVATIONS, _layer_norm, _rms_norm
from astra_mpi.kernels.cpu.dense.calls import by_tiles
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.dense.strip import NARROW, WIDE
from astra_mpi.kernels.cpu.dense.sweep import sweep
from astra_mpi.kernels.rest import Rest

Array = np.ndarray


def after_attention(x: Array, attended: Array, rest: Rest, normed: Array, inner: Array) -> bool:
    """x (n, D) += what the layers make of attention's (n, E), in place; normed (n, D) and inner (n, F) are scratch.

    False, and nothing is done, where `dense` would share a layer among threads or leave it to BLAS.
    """
    n, one_thread = len(x), _team.size() == 1
    whole = x.flags.c_contiguous and normed.flags.c_contiguous and inner.flags.c_contiguous
    if not (one_thread and whole and rest.fc1_bias is not None):
        return False
    layers = ((attended, rest.o, x), (normed, rest.fc1, inner), (inner, rest.fc2, x))
    if not all(by_tiles(*layer) for layer in layers):
        return False
    given = address(x), n, address(attended), attended.strides[0]
    weights = [(address(w), w.strides[0], *w.shape, address(b)) for w, b in rest_layers(rest)]
    norm = address(rest.norm), address(rest.norm_bias), np.float32(rest.eps), ACTIVATIONS[rest.activation]
    deepest = max(rest.o.shape[0], *rest.fc2.shape) if x.shape[1] % NARROW or inner.shape[1] % NARROW else 0
    scratch = address(normed), address(inner), room("last columns", deepest, NARROW), room("strip sums", n, WIDE)
    _rest(*given, *weights, *norm, *scratch)
    return True


def rest_layers(rest: Rest) -> tuple[tuple[Array, Array | None], ...]:
    return (rest.o, rest.o_bias), (rest.fc1, rest.fc1_bias), (rest.fc2, rest.fc2_bias)


@compiled()
def _rest(x, n, attended, lda, outer, first, second, norm, norm_bias, eps, kind, normed, inner, last, sums):
    """outer, first, second: of a layer its weight, bytes between rows, rows, columns, and its bias; addresses."""
    d, f = outer[3], first[3]
    sweep(attended, lda, n, outer[2], outer[0], outer[1], 0, d, outer[4], -1, True, x, 4 * d, last, sums)
    if norm_bias:
        _layer_norm(float_rows(x, n, d), floats(norm, d), floats(norm_bias, d), f32(eps), float_rows(normed, n, d))
    else:
        _rms_norm(float_rows(x, n, d), floats(norm, d), f32(eps), float_rows(normed, n, d))
    sweep(normed, 4 * d, n, d, first[0], first[1], 0, f, first[4], kind, False, inner, 4 * f, last, sums)
    sweep(inner, 4 * f, n, f, second[0], second[1], 0, d, second[4], -1, True, x, 4 * d, last, sums)
