"""All that follows attention in a block, in one call: of few rows, what is between four calls takes as long as one."""

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu._memory import float_rows, floats
from astra_mpi.kernels.cpu._rows import ACTIVATIONS, _add_layer_norm, _add_rms_norm
from astra_mpi.kernels.cpu.dense.calls import FEWEST, by_tiles
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.dense.strip import NARROW, WIDE
from astra_mpi.kernels.cpu.dense.sweep import sweep
from astra_mpi.kernels.cpu.dense.tile import HAS_TILES
from astra_mpi.kernels.rest import Rest

Array = np.ndarray


def after_attention(x: Array, attended: Array, rest: Rest, normed: Array, inner: Array) -> bool:
    """x (n, D) += what the layers make of attention's (n, E), in place; normed (n, D) and inner (n, F) are scratch.

    False, and nothing is done, where `dense` would share a layer among threads or leave it to BLAS. The bits are those
    of `dense`, `add_layer_norm` or `add_rms_norm`, `dense` and `dense`.
    """
    n, whole = len(x), x.flags.c_contiguous and normed.flags.c_contiguous and inner.flags.c_contiguous
    if _team.size() > 1 or not whole or attended.shape != (n, len(rest.o)):
        return False
    if not (by_tiles(attended, rest.o, x) and by_tiles(normed, rest.fc1, inner) and by_tiles(inner, rest.fc2, x)):
        return False
    if not x.flags.writeable:
        raise ValueError("what is computed in place is read-only")
    given = address(x), n, address(attended), attended.strides[0]
    layers = ((rest.o, rest.o_bias), (rest.fc1, rest.fc1_bias), (rest.fc2, rest.fc2_bias))
    weights = [(address(weight), weight.strides[0], *weight.shape, address(bias)) for weight, bias in layers]
    norm = address(rest.norm), address(rest.norm_bias), np.float32(rest.eps), ACTIVATIONS[rest.activation]
    deepest = max(len(rest.o), *rest.fc2.shape) if x.shape[1] % NARROW or inner.shape[1] % NARROW else 0
    scratch = address(normed), address(inner), room("last columns", deepest, NARROW), room("strip sums", n, WIDE)
    _rest(*given, *weights, *norm, *scratch)
    return True


@compiled()
def _rest(x, n, attended, lda, outer, first, second, norm, norm_bias, eps, kind, normed, inner, last, sums):
    """outer, first, second: of a layer its weight, bytes between rows, rows, columns, and its bias; addresses."""
    d, f = outer[3], first[3]
    sweep(attended, lda, n, outer[2], outer[0], outer[1], 0, d, 0, -1, False, normed, 4 * d, last, sums)
    total, row = float_rows(x, n, d), float_rows(normed, n, d)
    if norm_bias:
        _add_layer_norm(total, row, floats(outer[4], d), floats(norm, d), floats(norm_bias, d), f32(eps), row)
    else:
        _add_rms_norm(total, row, floats(outer[4], d), floats(norm, d), f32(eps), row)
    sweep(normed, 4 * d, n, d, first[0], first[1], 0, f, first[4], kind, False, inner, 4 * f, last, sums)
    sweep(inner, 4 * f, n, f, second[0], second[1], 0, d, second[4], -1, True, x, 4 * d, last, sums)


def warm_up_rest() -> None:
    """Compile it, or load it from the cache on disk."""
    if not HAS_TILES:
        return
    rows, weight = np.ones((FEWEST, NARROW), np.float32), np.ones((NARROW, NARROW), np.float32)
    line = weight[0]
    layers = Rest(weight, line, line, line, 1.0, weight, line, "relu", weight, line)
    after_attention(rows, rows.copy(), layers, rows.copy(), rows.copy())
