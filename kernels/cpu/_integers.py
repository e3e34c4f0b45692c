"""Products that are the same on every processor (kernels/integers.py): by AMX, where each digit of a row is a row of
its own, in tiles of sixteen, or by pairs of 16-bit integers.
"""

from collections.abc import Sequence

import numpy as np

from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._features import path
from astra_mpi.kernels.cpu._integer_rows import PANEL, ROWS, Given, Work, product_rows
from astra_mpi.kernels.cpu._integer_words import COLUMNS, packed_digits, packed_pairs, padded
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.integers import Integers, Moved, integers
from astra_mpi.kernels.integers import integer_product as specified

Array = np.ndarray

#: multiply-adds below which a second thread costs more than it saves
_LEAST_SHARED = 1 << 20
_TILES = amx.configuration()


def integer_product(parts: Sequence[Array], weights: Integers, out: Array, moved: Moved | None = None) -> Array:
    """See kernels.integers; out: C-contiguous. Raises ValueError on sizes that do not fit."""
    sizes = out.shape, *(part.shape for part in parts)
    if sum(width for _, width in sizes[1:]) != weights.shape[0] or {n for n, _ in sizes} != {len(out)}:
        raise ValueError(f"rows {sizes[1:]} times weights {weights.shape} are not {out.shape}")
    if not (out.size and weights.shape[0]):
        return specified(parts, weights, out, moved)
    tiles = _TILES if path("int8").name == "amx" else None
    words, scale = (packed_pairs if tiles is None else packed_digits)(weights.high, weights)
    parts = [np.ascontiguousarray(part, np.float32) for part in parts]
    places = np.array([(address(part), part.shape[1]) for part in parts], np.int64)
    state, keep, bias = (None, 0, None) if moved is None else moved
    held = [None if array is None else np.ascontiguousarray(array, np.float32) for array in (state, bias)]
    at = address(words), words.strides[0], address(scale), scale.strides[0]
    given = Given(places, *at, address(held[0]), np.float32(keep), address(held[1]))

    def share(index: int, count: int) -> None:
        first, last = len(out) * index // count, len(out) * (index + 1) // count
        product_rows(tiles, given, first, last, _work(weights, tiles is not None), out)

    if _team.size() == 1 or len(out) * weights.high.size < _LEAST_SHARED:
        share(0, 1)
    else:
        _team.run(share)
    return out


def warm_up_integers() -> None:
    """Compile what products take here, or load it from the cache on disk."""
    x = np.ones((1, 1), np.float32)
    integer_product([x], integers(x), x.copy(), Moved(x, 1.0, x[0]))


def _work(weights: Integers, digits: bool) -> Work:
    groups, k_pad = len(weights.scale), padded(weights.shape[0])
    panel = (
        room("digits", 2 * PANEL, k_pad // 4).view(np.int8) if digits else room("pairs", PANEL, k_pad).view(np.int16)
    )
    return Work(
        panel,
        room("a row of integers", k_pad),
        room("steps of integers", PANEL, groups),
        room("offsets of integers", PANEL, groups).view(np.int32),
        room("counts of integers", 3 * ROWS, COLUMNS).view(np.int32),
        room("sums of integers", ROWS, COLUMNS),
    )
