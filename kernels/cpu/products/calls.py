"""What Python calls: linear layers on packed weights, shared by the threads of the process's team."""

import threading
from math import prod
from typing import Any, NamedTuple

import numpy as np

from astra_mpi.kernels._compile import Native
from astra_mpi.kernels.aligned import address, aligned
from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._features import path
from astra_mpi.kernels.cpu._rows import ACTIVATIONS
from astra_mpi.kernels.cpu.products import amx
from astra_mpi.kernels.cpu.products.layer import SPARE_ROWS
from astra_mpi.kernels.cpu.products.layout import GROUP_WORDS, WORDS, Strips, empty, pack
from astra_mpi.kernels.cpu.products.parts import ADD, SET, Layer
from astra_mpi.kernels.cpu.products.tasks import LAYERS

Array = np.ndarray


class _Way(NamedTuple):
    """How much a path takes at a time."""

    panel_bytes: int  # of a panel of rows: a part of the second-level cache, beside the strips that pass through it
    columns: int  # multiplied before their sums are finished: few would write the result in pieces slow for memory
    rows: int  # of a panel, at least if there are as many
    block: int  # rows of the largest block that is multiplied at a time


_VECTORS, _TILED = _Way(192 << 10, 1024, 96, 12), _Way(1536 << 10, 512, 256, 32)
#: rows up to which threads divide the outputs among them, not the rows
_FEW_ROWS = 32
#: multiply-adds, some 20 us, for which waking other threads takes too long
_LEAST_WORK = 1 << 20
#: rooms that a share keeps; they have their buffers in common
_MOST_ROOMS = 64


class _Buffers:
    """What one share works in: as large as it has been needed, and the rooms in it that were asked for last."""

    def __init__(self) -> None:
        self.buffers: dict[str, Array] = {}
        self.rooms: dict[tuple[str, int, int, bool, str], tuple[int, ...]] = {}

    def buffer(self, name: str, dtype: Any, *shape: int) -> Array:
        n_bytes = prod(shape) * np.dtype(dtype).itemsize
        if name not in self.buffers or self.buffers[name].nbytes < n_bytes:
            self.buffers[name] = aligned((n_bytes,), np.uint8)
            self.rooms.clear()
        return self.buffers[name][:n_bytes].view(dtype).reshape(shape)

    def room(self, weights: Strips, step: int, tiles: Array | None, name: str = "") -> tuple[int, ...]:
        """A `Room` in numbers, for panels of `step` rows; two rooms are in use at once if their names differ."""
        key = weights.kind, weights.n_words, step, tiles is None, name
        if key not in self.rooms:
            if len(self.rooms) >= _MOST_ROOMS:
                self.rooms.clear()
            made = self._made(weights.kind, weights.n_words, step + SPARE_ROWS, tiles, name)
            self.rooms[key] = made
        return self.rooms[key]

    def _made(self, kind: str, n_words: int, r: int, tiles: Array | None, name: str) -> tuple[int, ...]:
        int8, columns, width = kind == "int8", _way(tiles).columns, n_words * WORDS[kind][0]
        counts = (r if int8 else 0, columns) if tiles is None else (32, 32)
        groups = -(-n_words // GROUP_WORDS) if int8 else 0
        parts = (
            self.buffer(f"{name}panel", np.int8 if int8 else np.uint16, r, width),
            self.buffer("sums", np.float32, r, columns),
            self.buffer("gate sums", np.float32, r, columns),
            self.buffer("counts", np.int32, *counts),
            self.buffer(f"{name}factors", np.float32, groups, r),
            self.buffer(f"{name}offsets", np.int32, groups, r),
            self.buffer("line", np.float32, columns),
            self.buffer("gate line", np.float32, columns),
            _ZEROS,
        )
        panel, sums, gate_sums, of_group, *rest = map(address, parts)
        return panel, r, width, groups, columns, sums, gate_sums, of_group, *counts, *rest


class _Local(threading.local):
    """Buffers of each share of what a thread asks the team for."""

    def __init__(self) -> None:
        self.of: dict[int, _Buffers] = {}

    def __getitem__(self, index: int) -> _Buffers:
        if index not in self.of:
            self.of[index] = _Buffers()
        return self.of[index]


_local = _Local()
_TILES = amx.configuration()
_ZEROS = np.zeros(max(_VECTORS.columns, _TILED.columns), np.float32)
_zeros: dict[int, Array] = {}


def layer(
    x: Array,
    weights: Strips,
    out: Array,
    bias: Array | None = None,
    activation: str = "",
    gate: Strips | None = None,
    gate_bias: Array | None = None,
    add: bool = False,
    by: str = "",
) -> Array:
    """out (m, n) = act(x (m, k) @ weights + bias), added to what is there if `add`.

    With a gate: (x @ weights + bias) * act(x @ gate + gate_bias). x and out are float32, their rows any distance apart.
    by: a path that this CPU has, in place of the process's.
    """
    given = _layer(weights, bias, activation, gate, gate_bias)
    m, mode = len(x), ADD if add else SET
    if not (m and weights.n):
        return out
    x, tiles = _rows_of(x), _tiles(by or path(weights.kind).name)

    def share(index: int, count: int) -> tuple[int, ...]:
        rows, columns = _shares(m, weights, index, count)
        n_rows = rows.stop - rows.start if columns.stop > columns.start else 0
        room = _local[index].room(weights, _panel_rows(weights, n_rows, tiles), tiles)
        part = _at(x, rows.start), x.strides[0], n_rows
        to = columns.start, columns.stop, _at(out, rows.start), out.strides[0], mode
        return address(tiles), *given, *part, *room, *to

    _run(LAYERS[weights.kind, tiles is not None][0], share, m * weights.k * weights.n)
    return out


def two_layers(
    x: Array,
    inner: Strips,
    inner_bias: Array | None,
    activation: str,
    gate: Strips | None,
    gate_bias: Array | None,
    outer: Strips,
    outer_bias: Array | None,
    out: Array,
    add: bool = False,
) -> Array:
    """`layer` of an inner layer, gated or not, and of an outer one without activation on what it gives, in one go."""
    m = len(x)
    if not (m and outer.n):
        return out
    if m <= _FEW_ROWS and _team.size() > 1:
        between = np.empty((m, inner.n), np.float32)
        layer(x, inner, between, inner_bias, activation, gate, gate_bias)
        return layer(between, outer, out, outer_bias, add=add)
    first = _layer(inner, inner_bias, activation, gate, gate_bias)
    second = _layer(outer, outer_bias, "", None, None)
    x, tiles, mode = _rows_of(x), _tiles(path(inner.kind).name), ADD if add else SET

    def share(index: int, count: int) -> tuple[int, ...]:
        rows, buffers = _cut(m, index, count, 1), _local[index]
        n_rows = rows.stop - rows.start
        step = _panel_rows(outer, n_rows, tiles)
        room, room_2 = buffers.room(inner, step, tiles), buffers.room(outer, step, tiles, "outer ")
        shape = (step, inner.n) if inner.kind == "int8" else (1, 1)
        between = address(buffers.buffer("between", np.float32, *shape)), *shape
        given = _at(x, rows.start), x.strides[0], n_rows
        to = _at(out, rows.start), out.strides[0], mode
        return address(tiles), *first, *second, *given, *room, *room_2, *between, *to

    _run(LAYERS[inner.kind, tiles is not None][1], share, m * inner.k * (inner.n + outer.n))
    return out


def _run(task: Native, share: _team.Share, n_multiply_adds: int) -> None:
    """On all threads, if there is enough to do."""
    _team.run_native(task, share, alone=n_multiply_adds < _LEAST_WORK)


def warm_up_products(kind: str) -> None:
    """Compile what products of this type need here, or load it from the cache on disk."""
    if path(kind).name != "widened":
        weights, x = empty(kind, 1, 1), np.ones((1, 1), np.float32)
        pack(weights, 0, x)
        layer(x, weights, x.copy())
        two_layers(x, weights, None, "relu", None, None, weights, None, x.copy())


def _layer(weights: Strips, bias: Array | None, activation: str, gate: Strips | None, gate_bias: Array | None) -> Layer:
    if activation and activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}")
    gates = (0, 0, 0) if gate is None else (_at(gate.words), _at(gate.scale), _at(_bias(gate_bias, weights.n)))
    return Layer(
        _at(weights.words),
        _at(weights.scale),
        _at(_bias(bias, weights.n)),
        *gates,
        ACTIVATIONS[activation] if activation else -1,
        weights.k,
        weights.n,
        weights.n_words,
    )


def _bias(bias: Array | None, n: int) -> Array:
    """The bias, or zeros that stay in memory."""
    if bias is not None:
        return bias
    if n not in _zeros:
        _zeros.setdefault(n, np.zeros(n, np.float32))  # another thread's, if it was sooner
    return _zeros[n]


def _at(array: Array, row: int = 0) -> int:
    first: int = array.__array_interface__["data"][0]
    return first + (row * array.strides[0] if row else 0)


def _rows_of(x: Array) -> Array:
    """x, its rows contiguous."""
    return x if x.shape[1] < 2 or x.strides[1] == x.itemsize else np.ascontiguousarray(x)


def _way(tiles: Array | None) -> _Way:
    return _VECTORS if tiles is None else _TILED


def _tiles(by: str) -> Array | None:
    return _TILES if by == "amx" else None


def _shares(m: int, weights: Strips, index: int, count: int) -> tuple[slice, slice]:
    """Rows and outputs of one thread: all of either, and its part of the other."""
    if m > _FEW_ROWS:
        return _cut(m, index, count, 1), slice(0, weights.n)
    return slice(0, m), _cut(weights.n, index, count, 32)


def _cut(n: int, index: int, count: int, multiple: int) -> slice:
    """Part `index` of `count` of n things that are cut at multiples."""
    pieces = -(-n // multiple)
    first, last = pieces * index // count, pieces * (index + 1) // count
    return slice(min(n, first * multiple), min(n, last * multiple))


def _panel_rows(weights: Strips, m: int, tiles: Array | None) -> int:
    """Rows that are multiplied at a time: as many in each panel as go, and no more than the cache has room for."""
    way = _way(tiles)
    most = max(1, way.panel_bytes // (4 * weights.n_words * way.rows)) * way.rows
    even = -(-m // max(1, -(-8 * m // (9 * most))))  # an eighth more than most is better than one panel more
    return max(1, -(-even // way.block)) * way.block
