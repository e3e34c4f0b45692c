"""The kernels on a CPU: BLAS (NumPy's) for the products, Numba for what is between. Signatures as in `reference`.

Every compiled function sees float32 and uint16 contiguous arrays only, so each is compiled once, and those on narrow
weights once per storage type. The array arguments must be writeable, but for narrow weights: Numba compiles a read-only
array's kernel anew.
"""

import numpy as np

from astra_mpi.kernels import _compile
from astra_mpi.kernels.cpu._attention import attend_codes, attend_rows
from astra_mpi.kernels.cpu._block_floats import times_blocks
from astra_mpi.kernels.cpu._blocks import activated_blocks, multiply_blocks, quantise_rows, widen_blocks
from astra_mpi.kernels.cpu._codes import (
    add_entries,
    code_sums,
    decode_grouped,
    decode_residual,
    gram_sum,
    pack,
    pack_columns,
    table_sum,
    unpack,
    unpack_columns,
)
from astra_mpi.kernels.cpu._integers import integer_product, warm_up_integers
from astra_mpi.kernels.cpu._levels import encode_levels
from astra_mpi.kernels.cpu._matmul import matmul
from astra_mpi.kernels.cpu._rows import (
    activate,
    activate_gated,
    add_layer_norm,
    add_residual,
    add_rms_norm,
    layer_norm,
    rms_norm,
    rotate,
    scale_add,
)
from astra_mpi.kernels.cpu._weights import matvec, vecmat, widen
from astra_mpi.kernels.cpu.dense.attention import attend, finish, warm_up_attention
from astra_mpi.kernels.cpu.dense.calls import dense, warm_up_dense
from astra_mpi.kernels.cpu.dense.encode import encode_grouped, encode_residual, make_ready_to_search, warm_up_search
from astra_mpi.kernels.cpu.dense.rest import after_attention, warm_up_rest
from astra_mpi.kernels.near import Near
from astra_mpi.kernels.reference import count_codes, segment_sum

#: how products are computed; `bfloat16` and `int8` are modules with the same functions
compute = "float32"

__all__ = [
    "activate",
    "activate_gated",
    "activated_blocks",
    "add_entries",
    "add_layer_norm",
    "add_residual",
    "add_rms_norm",
    "after_attention",
    "attend",
    "attend_codes",
    "attend_rows",
    "cache_state",
    "code_sums",
    "compute",
    "count_codes",
    "decode_grouped",
    "decode_residual",
    "dense",
    "encode_grouped",
    "encode_levels",
    "encode_residual",
    "finish",
    "gram_sum",
    "integer_product",
    "layer_norm",
    "make_ready_to_search",
    "matmul",
    "matvec",
    "multiply_blocks",
    "pack",
    "pack_columns",
    "quantise_rows",
    "rms_norm",
    "rotate",
    "scale_add",
    "segment_sum",
    "table_sum",
    "times_blocks",
    "unpack",
    "unpack_columns",
    "vecmat",
    "warm_up",
    "widen",
    "widen_blocks",
]


def cache_state() -> _compile.CacheState:
    """Where compiled kernels are kept between runs, or why they are not; complete after `warm_up`."""
    return _compile.STATE


def warm_up() -> None:
    """Compile every kernel, or load it from Numba's cache on disk: one rank does it first, then the others load."""
    n, width = 2, 4
    x, line = np.ones((n, width), np.float32), np.ones(width, np.float32)
    warm_up_dense()
    warm_up_rest()
    warm_up_attention()
    entries = np.ones((2, 2, 2), np.float32)  # (C, K, W)
    codes = encode_grouped(x, entries, np.ones((2, 2), np.float32))
    encode_residual(x[:, :2], entries, np.ones((2, 2), np.float32))
    encode_residual(np.ones((8, 8), np.float32), np.ones((1, 2, 8), np.float32), np.ones((1, 2), np.float32))
    decode_grouped(codes, entries)
    decode_residual(codes, entries)
    gram_sum(codes, np.ones((2, 2, 2, 2), np.float32))
    add_entries(x, code_sums(x, codes[:, 0], 2), codes[:, 0])
    unpack(pack(codes, 1), n, 2, 1)
    unpack_columns(pack_columns(codes, (1, 2)), n, (1, 2))
    warm_up_search()
    encode_levels(x[:, :2], np.ones((2, 2), np.float32))
    warm_up_integers()
    layer_norm(x, line, line, 1e-5)
    rms_norm(x, line, 1e-5)
    activate(x, line, "gelu")
    add_residual(x, x.copy(), line)
    scale_add(x, line, line)
    add_layer_norm(x, x.copy(), line, line, line, 1e-5, x.copy())
    add_rms_norm(x, x.copy(), line, line, 1e-5, x.copy())
    rotate(x, x.copy(), 1)
    activate_gated(x, line, x.copy(), line, "silu")
    heads = np.ones((1, n, width), np.float32)  # (H, a, d)
    for dtype in (np.float16, np.uint16, np.int8):
        values = np.ones((width, width), dtype)
        widen(values, line, 0, np.ones((width, width), np.float32))
        matvec(values, line, vecmat(line, values, line, line.copy()), line.copy())
    row_max, row_sum = np.zeros((2, 1, n), np.float32)
    attend(heads, heads, heads, None, None, heads.copy(), row_max, row_sum)
    places = np.arange(n, dtype=np.int32)
    near = Near(1.0, 1, np.ones((1, 3), np.float32), places, places)
    attend(heads, heads, heads, None, None, heads.copy(), row_max, row_sum, near)
    one, sums = np.ones((1, 1, width), np.float32), np.zeros((1, 1), np.float32)
    attend_rows(
        one, np.ones((n, 2 * width), np.float32), np.arange(n, dtype=np.uint16), line[:n], one.copy(), sums, sums.copy()
    )
    attend_codes(codes, np.ones((2, 2, n), np.float32), codes, None, line[:n], row_max[0], row_sum[0])
