"""The kernels on a GPU: CUDA sources of this folder, compiled at run time. Signatures as in `reference`.

Arrays are CuPy's, float32 or float16, and sums float32; codebooks and tables may also be the host's, and are then
uploaded once. Importing this needs CuPy and no GPU. Matrix products are cuBLAS' and not here.
"""

from astra_mpi.kernels.cuda._attention import attend, attend_packed, finish, finish_packed
from astra_mpi.kernels.cuda._codes import (
    count_codes,
    decode_grouped,
    decode_residual,
    distinct,
    encode_grouped,
    encode_residual,
    gram_sum,
    pack,
    table_sum,
    unpack,
    warm_up,
)
from astra_mpi.kernels.cuda._decode import attend_new, finish_new, merge_new, warm_up_new
from astra_mpi.kernels.cuda._integers import integer_product
from astra_mpi.kernels.cuda._levels import encode_levels, pack_columns, unpack_columns
from astra_mpi.kernels.cuda._rows import (
    activate,
    activate_gated,
    add_layer_norm,
    add_residual,
    add_rms_norm,
    layer_norm,
    rms_norm,
    rotate,
    scale_add,
    segment_sum,
)

__all__ = [
    "activate",
    "activate_gated",
    "add_layer_norm",
    "add_residual",
    "add_rms_norm",
    "attend",
    "attend_new",
    "attend_packed",
    "count_codes",
    "decode_grouped",
    "decode_residual",
    "distinct",
    "encode_grouped",
    "encode_levels",
    "encode_residual",
    "finish",
    "finish_new",
    "finish_packed",
    "gram_sum",
    "integer_product",
    "layer_norm",
    "merge_new",
    "pack",
    "pack_columns",
    "rms_norm",
    "rotate",
    "scale_add",
    "segment_sum",
    "table_sum",
    "unpack",
    "unpack_columns",
    "warm_up",
    "warm_up_new",
]
