"""What Python calls: codes of rows, shared by the threads of the process's team. They are those of float32 on every
path: bfloat16 only leaves the entries that can be nearest."""

from collections.abc import Callable

import numpy as np

from astra_mpi.kernels.cpu import _encode, _encode_narrow, _team
from astra_mpi.kernels.cpu.dense.room import room
from astra_mpi.kernels.cpu.dense.search import ROWS, search
from astra_mpi.kernels.cpu.dense.tile import HAS_TILES
from astra_mpi.kernels.cpu.flash.calls import used_path
from astra_mpi.kernels.reference import code_dtype

Array = np.ndarray

#: rows and terms for which tiles pay, and entries whose scores they keep
_FEWEST, _NARROWEST, _MOST_ENTRIES = 8, 8, 1024
#: multiply-adds for which waking other threads takes too long
_LEAST_WORK = 1 << 20


def encode_grouped(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, G) of x (n, G*W); see reference.encode_grouped."""
    x, entries, step = np.ascontiguousarray(x), np.ascontiguousarray(entries), entries.shape[2]
    x = x if x.flags.writeable else x.copy()  # compiled for arrays that are
    if _encode_narrow.pays(x, entries):
        return _encode_narrow.search(x, step, entries).astype(code_dtype(entries.shape[1]), copy=False)
    if not _tiled(x, entries):
        return _encode.encode_grouped(x, entries, half_norms)
    return search_tiles(x, step, entries, half_norms)


def encode_residual(x: Array, entries: Array, half_norms: Array) -> Array:
    """Codes (n, M) of x (n, W); see reference.encode_residual."""
    entries = np.ascontiguousarray(entries)
    if _encode_narrow.pays(x, entries):
        codes = _encode_narrow.search(np.array(x, order="C"), 0, entries)
        return codes.astype(code_dtype(entries.shape[1]), copy=False)
    if not _tiled(x, entries):
        return _encode.encode_residual(x, entries, half_norms)
    return search_tiles(np.array(x, order="C"), 0, entries, half_norms)


def make_ready_to_search(entries: Array, keep: Callable[[Array], Array]) -> None:
    """What searches make of entries (C, K, W), once and now, to where `keep` puts arrays."""
    _, size, width = entries.shape
    if entries.flags.c_contiguous and _encode_narrow.fits(size, width):
        _encode_narrow.make_ready(entries, keep)


def _tiled(x: Array, entries: Array) -> bool:
    _, size, width = entries.shape
    return HAS_TILES and len(x) >= _FEWEST and width >= _NARROWEST and size <= _MOST_ENTRIES


def search_tiles(x: Array, step: int, entries: Array, half_norms: Array) -> Array:
    """Codes (n, C) of rows x among entries (C, K, W), by products in float32; step as in `_encode_narrow.search`."""
    n_codes, size, width = entries.shape
    codes = np.empty((len(x), n_codes), np.uint16)

    def share(index: int, count: int) -> None:
        first, last = len(x) * index // count, len(x) * (index + 1) // count
        if first < last:
            held = room("turned rows", width, ROWS), room("entry scores", size, ROWS)
            search(x, step, entries, half_norms, codes, first, last, *held)

    if _team.size() == 1 or len(x) * n_codes * size * width < _LEAST_WORK:
        share(0, 1)
    else:
        _team.run(share)
    return codes.astype(code_dtype(size), copy=False)


def warm_up_search() -> None:
    """Compile what searches here, or load it from the cache on disk."""
    x = np.ones((_FEWEST, _NARROWEST), np.float32)
    encode_residual(x, np.ones((1, 2, _NARROWEST), np.float32), np.ones((1, 2), np.float32))
    if used_path() != "widened":
        _encode_narrow.warm_up()
