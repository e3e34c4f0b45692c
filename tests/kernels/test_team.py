"""The team of threads: all shares are done once, whoever waits, sleeps, fails or wants it too."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from astra_mpi.kernels._compile import Native, compiled
from astra_mpi.kernels.cpu import _barrier, _team
from astra_mpi.kernels.cpu._memory import longs


@pytest.fixture
def team():
    """A function that sets the number of threads."""
    yield _team.set_size
    _team.set_size(1)


def test_all_shares_are_done_whoever_else_wants_the_team(team):
    """Threads of a program, such as those of `calibrate`, run kernels at once."""
    team(2)

    def is_done(_):
        done = []

        def share(index, count):
            time.sleep(0.002 * index)
            done.append((index, count))

        _team.run(share)
        return sorted(done) in ([(0, 1)], [(0, 2), (1, 2)])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(is_done, range(30)))


def test_a_team_runs_all_shares_and_says_what_failed(team):
    team(3)
    seen = {}
    _team.run(lambda index, count: seen.update({index: (count, threading.get_ident())}))
    assert {index: count for index, (count, _) in seen.items()} == {0: 3, 1: 3, 2: 3}
    assert len({thread for _, thread in seen.values()}) == 3

    def fails(index, count):
        if index == 1:
            raise ValueError("the second share")

    with pytest.raises(ValueError, match="the second share"):
        _team.run(fails)
    words, x, y = _barrier.barrier_words(), np.arange(64.0), np.zeros(64)
    _team.run(lambda index, count: turned(x, y, words.ctypes.data, index, count))
    assert (x == (np.arange(64) + 2 * 500) % 64 + 1000).all()


@Native
def noted(at, index, count):
    words = longs(at, 2)
    longs(words[0], 64)[words[1]] += 1 + 10 * index + 100 * count
    return 1


def test_native_shares_are_done_awake_and_asleep(team):
    team(3)
    seen = np.zeros(64, np.int64)
    for pause_s in (0, 0, 0.02, 0):  # threads look for a task some 0.5 ms, then they sleep
        time.sleep(pause_s)
        _team.run_native(noted, lambda index, count: (seen.ctypes.data, index))
        _team.run_native(noted, lambda index, count: (seen.ctypes.data, 7 + index), alone=True)
        _team.run(lambda index, count, pause_s=pause_s: time.sleep(pause_s * index))  # a caller that sleeps is woken
    assert seen[:3].tolist() == [4 * 301, 4 * 311, 4 * 321]
    assert seen[7:].tolist() == [4 * 101, *[0] * 56]


@Native
def fails_in_the_second_share(at, index, count):
    if index == 1 or count == 1:
        raise ValueError("the second share")
    return 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # that it is printed
def test_a_native_share_that_fails_is_told(team):
    for size in (1, 2, 3):
        team(size)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="a compiled kernel failed on a thread"):
                _team.run_native(fails_in_the_second_share, lambda index, count: ())


def test_an_interrupted_caller_waits_for_the_others(team, monkeypatch):
    """Also one that is interrupted when it has told them of the task, and does none of it."""
    team(2)
    done, tell = [], _team.Team._tell

    def interrupted(self):
        tell(self)
        raise KeyboardInterrupt

    def task(index, count):
        time.sleep(0.05)
        done.append(index)

    with monkeypatch.context() as patch:
        patch.setattr(_team.Team, "_tell", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _team.run(task)
        assert done == [1]
    _team.run(lambda index, count: done.append(index))
    assert sorted(done) == [0, 1, 1]


def test_the_team_is_changed_between_tasks(team):
    """While other threads of the program use it."""
    team(2)
    seen, stop = np.zeros(64, np.int64), threading.Event()

    def work():
        while not stop.is_set():
            _team.run_native(noted, lambda index, count: (seen.ctypes.data, index))

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(20):
        team(3)
        team(2)
    stop.set()
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_native_shares_are_done_whoever_else_wants_the_team(team):
    team(2)
    counts = np.zeros((4, 64), np.int64)

    def work(row):
        for _ in range(300):
            _team.run_native(noted, lambda index, count: (row.ctypes.data, index))
        return row

    with ThreadPoolExecutor(4) as pool:
        for row in pool.map(work, counts):
            alone = 300 - (row[1] // 211)
            assert row[1] % 211 == 0 and row[0] == 101 * alone + 201 * (300 - alone)


@compiled()
def turned(x, y, at, index, count):
    """500 times: every number moves two places on and grows by 2; each half of it reads what all have written."""
    for _ in range(500):
        for i in range(index, x.size, count):
            y[i] = x[(i + 1) % x.size] + 1
        _barrier.barrier(at, count)
        for i in range(index, x.size, count):
            x[i] = y[(i + 1) % x.size] + 1
        _barrier.barrier(at, count)
