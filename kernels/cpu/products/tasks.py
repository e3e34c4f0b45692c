"""Layers as native tasks of the team: `calls.py` writes where everything lies, and a thread reads it here."""

from astra_mpi.kernels._compile import Native
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._memory import (
    byte_rows,
    float_rows,
    floats,
    integer_rows,
    longs,
    short_rows,
    unsigned_bytes,
)
from astra_mpi.kernels.cpu.products.layer import linear, linear_twice
from astra_mpi.kernels.cpu.products.parts import Layer, Room, Rows

#: numbers of a layer, of rows, and of a room
_LAYER, _ROWS, _ROOM = len(Layer._fields), len(Rows._fields), 15
#: before the room: the address of the tiles' configuration, a layer or two, and rows
_LAYER_ROWS, _LAYERS_ROWS = 1 + _LAYER + _ROWS, 1 + 2 * _LAYER + _ROWS
#: of all
_ONE, _TWO = _LAYER_ROWS + _ROOM + 5, _LAYERS_ROWS + 2 * _ROOM + 6


@inner()
def _layer(words, i):
    return Layer(
        words[i], words[i + 1], words[i + 2], words[i + 3], words[i + 4],
        words[i + 5], words[i + 6], words[i + 7], words[i + 8], words[i + 9],
    )  # fmt: skip


@inner()
def _rows(words, i):
    return Rows(words[i], words[i + 1], words[i + 2])


@inner()
def _room(panel, words, i):
    """panel: the array at words[i], in the type of products. See `calls._Buffers.room`."""
    r, groups, columns = words[i + 1], words[i + 3], words[i + 4]
    return Room(
        panel,
        float_rows(words[i + 5], r, columns),
        float_rows(words[i + 6], r, columns),
        integer_rows(words[i + 7], words[i + 8], words[i + 9]),
        float_rows(words[i + 10], groups, r),
        integer_rows(words[i + 11], groups, r),
        floats(words[i + 12], columns),
        floats(words[i + 13], columns),
        floats(words[i + 14], columns),
    )


@inner()
def _tiles(words):
    return unsigned_bytes(words[0], 64)


@inner()
def _shorts(words, i):
    return short_rows(words[i], words[i + 1], words[i + 2])


@inner()
def _bytes(words, i):
    return byte_rows(words[i], words[i + 1], words[i + 2])


@inner()
def _one(tiles, panel, words):
    i = _LAYER_ROWS
    room, rest = _room(panel, words, i), words[i + _ROOM :]
    linear(tiles, _layer(words, 1), _rows(words, i - _ROWS), room, rest[0], rest[1], rest[2], rest[3], rest[4])


@inner()
def _two(tiles, panel, outer_panel, words):
    i, j = _LAYERS_ROWS, _LAYERS_ROWS + _ROOM
    room, outer_room, rest = _room(panel, words, i), _room(outer_panel, words, j), words[j + _ROOM :]
    between = float_rows(rest[0], rest[1], rest[2])
    first, second = _layer(words, 1), _layer(words, 1 + _LAYER)
    linear_twice(tiles, first, second, _rows(words, i - _ROWS), room, outer_room, between, rest[3], rest[4], rest[5])


@Native
def _one_short(at, index, count):
    words = longs(at, _ONE)
    _one(None, _shorts(words, _LAYER_ROWS), words)
    return 1


@Native
def _one_short_tiled(at, index, count):
    words = longs(at, _ONE)
    _one(_tiles(words), _shorts(words, _LAYER_ROWS), words)
    return 1


@Native
def _one_byte(at, index, count):
    words = longs(at, _ONE)
    _one(None, _bytes(words, _LAYER_ROWS), words)
    return 1


@Native
def _one_byte_tiled(at, index, count):
    words = longs(at, _ONE)
    _one(_tiles(words), _bytes(words, _LAYER_ROWS), words)
    return 1


@Native
def _two_short(at, index, count):
    words = longs(at, _TWO)
    _two(None, _shorts(words, _LAYERS_ROWS), _shorts(words, _LAYERS_ROWS + _ROOM), words)
    return 1


@Native
def _two_short_tiled(at, index, count):
    words = longs(at, _TWO)
    _two(_tiles(words), _shorts(words, _LAYERS_ROWS), _shorts(words, _LAYERS_ROWS + _ROOM), words)
    return 1


@Native
def _two_byte(at, index, count):
    words = longs(at, _TWO)
    _two(None, _bytes(words, _LAYERS_ROWS), _bytes(words, _LAYERS_ROWS + _ROOM), words)
    return 1


@Native
def _two_byte_tiled(at, index, count):
    words = longs(at, _TWO)
    _two(_tiles(words), _bytes(words, _LAYERS_ROWS), _bytes(words, _LAYERS_ROWS + _ROOM), words)
    return 1


#: type of products, and whether by tiles -> a layer, and two in a row
LAYERS = {
    ("bfloat16", False): (_one_short, _two_short),
    ("bfloat16", True): (_one_short_tiled, _two_short_tiled),
    ("int8", False): (_one_byte, _two_byte),
    ("int8", True): (_one_byte_tiled, _two_byte_tiled),
}
