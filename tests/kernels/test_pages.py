"""Large pages that processes share: the same numbers are in memory once, and never others in their place."""

import multiprocessing
import os

import numpy as np
import pytest

from astra_mpi.kernels.aligned import LINE, PAGE
from astra_mpi.kernels.pages import SharedPages, _sum


@pytest.fixture
def pages():
    made = SharedPages.create(3 * PAGE)
    if made is None:
        pytest.skip("this system gives no large pages of shared memory")
    return made


def matrix(n_bytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, n_bytes, np.uint8)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(35, dtype=np.float32).reshape(5, 7),
        np.arange(13, dtype=np.uint8),
        matrix(PAGE + 17),
        np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
        np.array([np.nan, -0.0, 0.0], np.float32),
    ],
    ids=["float32", "odd bytes", "over a page's end", "by columns", "NaN and zeros"],
)
def test_kept_numbers_are_the_same_and_in_memory_once(pages, array):
    kept = pages.keep(array)
    assert kept.dtype == array.dtype and kept.shape == array.shape
    assert kept.tobytes() == array.tobytes() and kept.ctypes.data % LINE == 0
    again = pages.keep(array.copy())
    assert again.ctypes.data == kept.ctypes.data


def test_other_numbers_of_the_same_sum_get_their_own_place(pages):
    one, other = np.array([1, 2, 3, 4], np.int64), np.array([2, 1, 3, 4], np.int64)
    assert _sum(one.view(np.uint8)) == _sum(other.view(np.uint8))
    first, second = pages.keep(one), pages.keep(other)
    assert first.tolist() == one.tolist() and second.tolist() == other.tolist()
    assert pages.keep(other).ctypes.data == second.ctypes.data


def test_without_room_there_is_none_and_what_is_there_stays(pages):
    kept = pages.keep(matrix(2 * PAGE, 1))
    assert pages.keep(matrix(2 * PAGE, 2)) is None
    assert pages.keep(matrix(PAGE // 2, 3)) is not None
    np.testing.assert_array_equal(kept, matrix(2 * PAGE, 1))


def _keep_all(place, sizes, found):
    pages = SharedPages.join(*place)
    found.put([pages.keep(matrix(size, size)).ctypes.data - pages._memory.ctypes.data for size in sizes])


def test_processes_that_keep_at_once_find_each_others_numbers(pages):
    """In different orders, so that each of them puts some there first."""
    sizes = [4096 + 8 * i + i % 3 for i in range(60)]
    context = multiprocessing.get_context("spawn")
    found = context.Queue()
    orders = sizes, sizes[::-1], sizes[30:] + sizes[:30]
    others = [context.Process(target=_keep_all, args=(pages.place, order, found)) for order in orders]
    for other in others:
        other.start()
    places = [found.get(timeout=60) for _ in others]
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert {frozenset(of) for of in places} == {frozenset(places[0])} and len(set(places[0])) == len(sizes)
    for size in sizes:
        assert pages.keep(matrix(size, size)).ctypes.data - pages._memory.ctypes.data in places[0]


def test_another_file_and_another_process_are_not_joined(pages, tmp_path):
    process, file, token = pages.place
    assert SharedPages.join(process, file, token + 1) is None
    assert SharedPages.join(process, 1 << 20, token) is None
    (tmp_path / "other").write_bytes(b"x" * 100)
    with open(tmp_path / "other", "r+b") as other:
        assert SharedPages.join(process, other.fileno(), token) is None


def test_memory_goes_with_the_last_array(pages):
    def mapped():
        with open("/proc/self/maps") as maps:
            return any(line.startswith(first) for line in maps)

    own = SharedPages.join(*pages.place)
    first, file = f"{own._memory.ctypes.data:x}-", f"/proc/self/fd/{own._file}"
    kept = own.keep(np.arange(9))
    assert mapped() and os.path.exists(file)
    del own
    assert kept.tolist() == list(range(9)) and mapped() and not os.path.exists(file)
    del kept
    assert not mapped()


def test_large_pages_that_run_out_leave_small_ones_that_are_shared_too(pages, monkeypatch):
    monkeypatch.setattr(SharedPages, "_collapse", lambda *_: False)
    array = matrix(PAGE + 5)
    kept = pages.keep(array)
    first = pages._memory.ctypes.data
    assert first < kept.ctypes.data < first + pages._memory.nbytes and kept.tobytes() == array.tobytes()


def test_without_memory_there_is_none(pages, monkeypatch):
    monkeypatch.setattr(os, "posix_fallocate", _refuse)
    assert pages.keep(matrix(PAGE + 5)) is None and SharedPages.create(PAGE) is None


def _refuse(*_):
    raise OSError("no more of it")


@pytest.mark.parametrize("what", ["memfd_create", "ftruncate"])
def test_a_system_without_such_files_has_none(monkeypatch, what):
    monkeypatch.setattr(os, what, _refuse)
    assert SharedPages.create(PAGE) is None


def test_a_mapping_that_fails_closes_its_file_once(pages, monkeypatch):
    n_files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("astra_mpi.kernels.pages._Mapping", _refuse)
    assert SharedPages.create(PAGE) is None and SharedPages.join(*pages.place) is None
    assert len(os.listdir("/proc/self/fd")) == n_files
