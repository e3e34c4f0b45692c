"""AMX in NumPy: what stands for its instructions where a test runs compiled functions as Python."""

import ctypes

import numpy as np


class Tiles:
    """AMX as NumPy on memory: eight tiles of 16 rows of 64 bytes."""

    def __init__(self):
        self.bytes = [np.zeros((16, 64), np.uint8) for _ in range(8)]
        self.configured = 0

    def _memory(self, address, stride):
        room = np.ctypeslib.as_array((ctypes.c_uint8 * (15 * int(stride) + 64)).from_address(int(address)))
        return np.lib.stride_tricks.as_strided(room, (16, 64), (stride, 1))

    def load(self, tile):
        assert self.configured == 1
        return lambda address, stride: self.bytes[tile].__setitem__(slice(None), self._memory(address, stride))

    def store(self, tile):
        return lambda address, stride: self._memory(address, stride).__setitem__(slice(None), self.bytes[tile])

    def dots(self, *pairs):
        def dots(sums):
            for total, rows, words in pairs:
                self._dot(self.bytes[total].view(sums.dtype), self.bytes[rows], self.bytes[words])

        return dots

    def _dot(self, total, rows, words):
        if total.dtype == np.float32:
            a = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            b = (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            total += a @ b.reshape(16, 16, 2).transpose(0, 2, 1).reshape(32, 16)
        else:
            total += rows.view(np.int8).astype(np.int32) @ words.reshape(16, 16, 4).transpose(0, 2, 1).reshape(64, 16)

    def names(self):
        """What the compiled function calls -> what stands for it."""
        self.configured = 1
        made = {f"load_{i}": self.load(i) for i in range(8)} | {f"store_{i}": self.store(i) for i in range(4)}
        self.configured = 0
        pairs = (0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7)
        return made | {
            "dot_4": self.dots(*pairs),
            "dot_2": self.dots(*pairs[:2]),
            "clear": lambda: [self.bytes[i].fill(0) for i in range(4)],
            "configure": lambda address: setattr(self, "configured", self.configured + 1),
            "release": lambda: setattr(self, "configured", self.configured - 1),
        }


def _at(address, n, dtype):
    """Numbers in memory."""
    kind = np.ctypeslib.as_ctypes_type(np.dtype(dtype))
    return np.ctypeslib.as_array((kind * n).from_address(int(address)))


def floats(address, n):
    return _at(address, n, np.float32)


def integers(address, n):
    return _at(address, n, np.int32)


def scale_line(out, counts, factor, offset):
    floats(out, 32)[:] = (integers(counts, 32) - offset) * factor


def add_scaled_line(out, counts, factor, offset):
    floats(out, 32)[:] += (integers(counts, 32) - offset) * factor
