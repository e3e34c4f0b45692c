"""What Python calls: attention in float32, shared by the threads of the process's team."""

import numpy as np

from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _attention, _team
from astra_mpi.kernels.cpu._rows import LEAST_SHARED
from astra_mpi.kernels.cpu.dense.attend import KEYS, QUERIES, attend_units, finish_heads
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.dense.strip import NARROW
from astra_mpi.kernels.cpu.dense.tile import HAS_TILES
from astra_mpi.kernels.near import Near

Array = np.ndarray

#: queries of a head for which turning the keys pays
_FEWEST = 8
#: scores below which a second thread costs more than it saves
_THREAD_SCORES = 1 << 17


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
    *,
    begins: bool = False,
    out: Array | None = None,
) -> None:
    """One step of online softmax over keys k, v (Hkv, m, d), in place; see reference.attend."""
    (n_heads, n_queries, d), (n_kv_heads, n_keys, _) = q.shape, k.shape
    tiled = HAS_TILES and near is None and n_queries >= _FEWEST and d % NARROW == 0 and n_keys > 0
    if not (tiled and _plain(q, k, v) and acc.flags.c_contiguous):
        if begins:
            acc[...], row_max[...], row_sum[...] = 0, -np.inf, 0
        _attention.attend(q, k, v, key_bias, causal, acc, row_max, row_sum, near)
        if out is not None:
            finish(acc, row_sum, out)
        return
    bias = None if key_bias is None else np.ascontiguousarray(key_bias)
    reach = n_keys if causal is None else causal
    state = address(acc), address(row_max), address(row_sum), address(bias)
    done = (0, 0) if out is None else (address(out), out.strides[0])
    given = *map(_told, (q, k, v)), *state, (n_queries, n_keys, d, n_heads // n_kv_heads, reach), begins, done
    units = n_kv_heads * -(-n_queries // QUERIES)

    def share(index: int, count: int) -> None:
        first, last = units * index // count, units * (index + 1) // count
        if first < last:
            attend_units(*given, first, last, room("keys", KEYS * d), room("scores", QUERIES, KEYS))

    if _team.size() == 1 or n_heads * n_queries * n_keys < _THREAD_SCORES:
        share(0, 1)
    else:
        _team.run(share)


def finish(acc: Array, row_sum: Array, out: Array) -> None:
    """out (a, H*d) = acc (H, a, d) / row_sum (H, a), heads side by side; see reference.finish."""
    n_heads, _, d = acc.shape

    def share(index: int, count: int) -> None:
        heads = slice(n_heads * index // count, n_heads * (index + 1) // count)
        finish_heads(acc[heads], row_sum[heads], address(out) + 4 * d * heads.start, out.strides[0])

    if _team.size() == 1 or acc.size < LEAST_SHARED:
        share(0, 1)
    else:
        _team.run(share)


def _plain(*arrays: Array) -> bool:
    """Whether they are float32, the numbers of a head side by side."""
    return all(a.dtype == np.float32 and a.strides[2] == 4 for a in arrays)


def _told(array: Array) -> tuple[int, int, int]:
    return address(array), array.strides[0], array.strides[1]


def warm_up_attention() -> None:
    """Compile it, or load it from the cache on disk."""
    heads = np.ones((1, _FEWEST, NARROW), np.float32)
    row_max, row_sum = np.zeros((2, 1, _FEWEST), np.float32)
    attend(heads, heads, heads, None, None, heads.copy(), row_max, row_sum)
    finish(heads, row_sum, np.ones((_FEWEST, NARROW), np.float32))
