"""Attention in bfloat16 as native tasks of the team: `calls.py` writes where everything lies, threads read it here."""

import numpy as np

from astra_mpi.kernels._compile import Native
from astra_mpi.kernels.aligned import address
from astra_mpi.kernels.cpu._inner import inner
from astra_mpi.kernels.cpu._math import f32, i32
from astra_mpi.kernels.cpu._memory import bits, float_rows, floats, integers, longs, unsigned_bytes
from astra_mpi.kernels.cpu.flash.scores import Scores
from astra_mpi.kernels.cpu.flash.tiles import Heads, Sizes, attend_units

#: numbers of heads, of sizes, and of what is done with scores
_HEADS, _SIZES, _SCORES = len(Heads._fields), len(Sizes._fields), 13
#: the address of the tiles' configuration, seven places, rows of keys, sizes, scores, the units and the workspace
_ALL = 1 + 7 * _HEADS + 2 + _SIZES + _SCORES + 5


#: what `attend_units` takes of the same name
Given = tuple[tuple[Heads, ...], np.ndarray, Sizes, Scores, bool]


def in_words(
    places: tuple[Heads, ...], key_rows: np.ndarray, sizes: Sizes, scores: Scores, begins: bool
) -> tuple[int, ...]:
    """What `_attend` reads, without the first and the last ones."""
    arrays = (scores.bias, scores.relative, scores.query_places, scores.key_places)
    bias, relative, queries, keys = ((address(array), *array.shape) for array in arrays)
    cap = int(np.float32(scores.cap).view(np.int32))
    done = *bias, *relative, *queries, *keys, int(scores.biased), scores.reach, cap, scores.window
    heads = (number for place in places for number in place)
    return *heads, address(key_rows), len(key_rows), *sizes, *done, int(begins)


@inner()
def _scores(words, i):
    return Scores(
        floats(words[i], words[i + 1]),
        words[i + 9] != 0,
        words[i + 10],
        i32(words[i + 11]).view(f32),
        words[i + 12],
        float_rows(words[i + 2], words[i + 3], words[i + 4]),
        integers(words[i + 5], words[i + 6]),
        integers(words[i + 7], words[i + 8]),
    )


@inner()
def _heads(words, i):
    return Heads(words[i], words[i + 1], words[i + 2])


@inner()
def _attend(tiles, words):
    places = (
        _heads(words, 1), _heads(words, 4), _heads(words, 7), _heads(words, 10),
        _heads(words, 13), _heads(words, 16), _heads(words, 19),
    )  # fmt: skip
    i = 1 + 7 * _HEADS
    key_rows, i = longs(words[i], words[i + 1]), i + 2
    sizes = Sizes(
        words[i], words[i + 1], words[i + 2], words[i + 3], words[i + 4], words[i + 5], words[i + 6], words[i + 7]
    )
    scores, i = _scores(words, i + _SIZES), i + _SIZES + _SCORES
    work = bits(words[i + 3], words[i + 4])
    attend_units(tiles, places, key_rows, sizes, scores, words[i] != 0, words[i + 1], words[i + 2], work)


@Native
def _by_vectors(at, index, count):
    _attend(None, longs(at, _ALL))
    return 1


@Native
def _by_tiles(at, index, count):
    words = longs(at, _ALL)
    _attend(unsigned_bytes(words[0], 64), words)
    return 1


#: by whether tiles of AMX are used
ATTEND = {False: _by_vectors, True: _by_tiles}
