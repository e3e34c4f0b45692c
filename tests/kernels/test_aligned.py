"""Arrays in large pages: copies at lines of the cache, whose memory goes when the last of them goes."""

import gc
import weakref

import numpy as np

from astra_mpi.kernels import aligned
from astra_mpi.kernels.aligned import LINE, address, lasting


class Subclass(np.ndarray):
    pass


def test_an_address_is_that_of_the_first_number():
    whole = np.arange(60, dtype=np.float32).reshape(6, 10)
    frozen = whole.copy()
    frozen.flags.writeable = False
    for array in (whole, whole[2:, 3:], whole.T, whole[:0], frozen, whole.view(Subclass)[1:]):
        assert address(array) == array.ctypes.data
    assert address(None) == 0


def test_copies_that_last():
    given = [np.arange(n, dtype=dtype) for n, dtype in ((3, np.uint8), (1000, np.float32), (70, np.int16))]
    kept = [lasting(array) for array in given]
    for before, after in zip(given, kept, strict=True):
        np.testing.assert_array_equal(before, after)
        assert after.dtype == before.dtype and address(after) % LINE == 0 and not np.shares_memory(before, after)
    assert lasting(np.empty((0, 4))).shape == (0, 4)


def test_more_than_a_region(monkeypatch):
    monkeypatch.setattr(aligned, "_REGION", 1 << 12)
    monkeypatch.setattr(aligned._Regions, "memory", None)
    large = [lasting(np.full(3 << 20, i, np.uint8)) for i in range(3)]
    assert [int(array.min()) for array in large] == [int(array.max()) for array in large] == [0, 1, 2]


def test_memory_goes_with_its_arrays(monkeypatch):
    monkeypatch.setattr(aligned._Regions, "memory", None)
    kept = lasting(np.ones(10))
    memory = weakref.ref(kept.base)
    del kept
    gc.collect()
    assert memory() is None and lasting(np.ones(10)).sum() == 10
