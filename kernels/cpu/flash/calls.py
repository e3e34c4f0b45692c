"""What Python calls: attention in bfloat16 for all heads of a sequence, shared by the threads of the process's team."""

from functools import lru_cache

import numpy as np

from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._features import features, path
from astra_mpi.kernels.cpu._math import f32
from astra_mpi.kernels.cpu.dense import attention
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.flash.scores import NONE, Scores
from astra_mpi.kernels.cpu.flash.tasks import ATTEND, Given, in_words
from astra_mpi.kernels.cpu.flash.tiles import Heads, Sizes, workspace_words
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.near import Near

Array = np.ndarray

#: rows of a tile: of the sums and queries that stay in the cache while the keys pass
TILE_ROWS = 192
#: rows whose scores are multiplied and exponentiated at once, by path; both divide TILE_ROWS
BLOCK = {"avx512_bf16": 12, "amx": 32}
#: rows per key head, and scores of one, below which packing keys and values costs more than it saves
_FEW_ROWS, _FEW_SCORES = 2, 1024
#: scores below which a second thread costs more than it saves
_THREAD_SCORES = 1 << 17
#: keys that take as long as what a tile takes beside its keys
_TILE_COST = 160
#: beside those of the products: what narrows numbers and exponentiates
_NEEDS = {"avx512bf16", "avx512bw", "avx512dq"}
_TILES = amx.configuration()
#: keys are the first rows of k and v
_FIRST = np.empty(0, np.int64)


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
    by: str = "",
    key_rows: Array | None = None,
    *,
    begins: bool = False,
    out: Array | None = None,
) -> None:
    """One step of online softmax over keys k, v (Hkv, m, d), in place; see reference.attend.

    q, k, v and weights are rounded to bfloat16 for the products. With few scores, and on CPUs without the instructions,
    this is float32's. by: a path of bfloat16 that this CPU has, taken in any case. key_rows (m,) int64: k and v are
    tables, whose rows these are the keys; nothing checks that there are such rows.
    """
    n_heads, n_queries, d_head = q.shape
    n_groups, n_keys, _ = k.shape if key_rows is None else (len(k), len(key_rows), d_head)
    if q.size == 0:
        return
    repeat = n_heads // n_groups
    if not by:
        few = repeat * n_queries < _FEW_ROWS or repeat * n_queries * n_keys < _FEW_SCORES  # or none
        by = "widened" if few else used_path()
    if by == "widened":
        k, v = (k, v) if key_rows is None else (k[:, key_rows], v[:, key_rows])
        attention.attend(q, k, v, key_bias, causal, acc, row_max, row_sum, near, begins=begins, out=out)
        return
    block = BLOCK[by]
    tile_rows = min(TILE_ROWS, _up(repeat * n_queries, block))
    reach = n_keys if causal is None else causal  # query i sees key j when j <= i + reach
    sizes = Sizes(
        n_groups, repeat, n_queries, n_keys, d_head, _up(d_head, 32 if by == "amx" else 2) // 2, block, tile_rows
    )
    scores = _scores(key_bias, n_keys, reach, near)
    rows = _FIRST if key_rows is None else np.ascontiguousarray(key_rows, np.int64)
    done = Heads(0, 0, 0) if out is None else Heads(address(out), 4 * d_head, out.strides[0])
    places = *(_place(array) for array in (q, k, v, acc, row_max, row_sum)), done
    alone = n_heads * n_queries * n_keys < _THREAD_SCORES
    cuts = _cuts(sizes, reach, 1 if alone else _team.size())
    _on_team(tiles_of(by), (places, rows, sizes, scores, begins), cuts)


def _on_team(tiles: Array | None, given: Given, cuts: list[int]) -> None:
    """`attend_units` of the units between cuts, each by a thread."""
    words, n_words = (address(tiles), *in_words(*given)), workspace_words(given[2])

    def share(index: int, count: int) -> tuple[int, ...]:
        first, last = (cuts[index], cuts[index + 1]) if count == len(cuts) - 1 else (0, cuts[-1])
        return *words, first, last, address(room("attention", n_words, index=index)), n_words

    _team.run_native(ATTEND[tiles is not None], share, alone=len(cuts) == 2)


def used_path() -> str:
    """How attention in bfloat16 is computed here: `widened` is float32's."""
    return path("bfloat16").name if features() >= _NEEDS else "widened"


def reads_rows() -> bool:
    """Whether attention reads rows of tables where they are, faster than they are copied."""
    return used_path() != "widened"


def tiles_of(by: str) -> Array | None:
    """What tells compiled code the path: the configuration of AMX's tiles, or None."""
    return _TILES if by == "amx" else None


def warm_up() -> None:
    """Compile `attend`, or load it from the cache on disk."""
    heads, state = np.ones((1, 1, 2), np.float32), np.zeros((2, 1, 1), np.float32)
    attend(heads, heads, heads, None, None, heads.copy(), state[0], state[1], by=used_path())


@lru_cache
def _cuts(sizes: Sizes, reach: int, count: int) -> list[int]:
    """Where the units of work of each of `count` threads begin, and end: tiles of rows, key head after key head, by the
    keys that they see."""
    n_tiles = -(-sizes.repeat * sizes.n_queries // sizes.tile_rows)
    if count == 1:
        return [0, sizes.n_groups * n_tiles]
    last_query = np.minimum((np.arange(n_tiles) + 1) * sizes.tile_rows // sizes.repeat, sizes.n_queries)
    seen = np.clip(last_query + reach, 1, sizes.n_keys)
    costs = np.tile(seen + _TILE_COST, sizes.n_groups)
    done = np.cumsum(costs)
    inner = np.searchsorted(done - costs / 2, done[-1] * np.arange(1, count) / count)  # the nearest end of a unit
    return [0, *inner.tolist(), len(done)]


def _up(n: int, unit: int) -> int:
    """The least multiple of unit that is not less than n."""
    return -(-n // unit) * unit


def _place(array: Array) -> Heads:
    return Heads(address(array), array.strides[0], array.strides[1])


def _scores(key_bias: Array | None, n_keys: int, reach: int, near: Near | None) -> Scores:
    bias = np.full(_up(n_keys, 32), -np.inf, np.float32)  # hides the keys beyond the last
    bias[:n_keys] = 0 if key_bias is None else key_bias
    near = near or Near()
    relative, query_places, key_places = NONE[0], NONE[1], NONE[1]
    if near.placed:
        query_places = np.ascontiguousarray(near.query_places, np.int32)
        key_places = np.ascontiguousarray(near.key_places, np.int32)
    if near.relative is not None:
        relative = np.ascontiguousarray(near.relative, np.float32)
    return Scores(bias, key_bias is not None, reach, f32(near.cap), near.window, relative, query_places, key_places)
