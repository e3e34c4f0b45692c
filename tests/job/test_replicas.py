"""Jobs over replicas: who computes what, the same bits as on one rank, and every way to end."""

import json
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import astra_mpi
from astra_mpi.cli import _parse
from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import AstraError, InputError
from astra_mpi.job import runner
from astra_mpi.job.queue import Queue
from astra_mpi.job.shared import LOOKS, asks_at
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.post import Post
from astra_mpi.ranks.signals import Interrupted
from helpers.job import write_job

mpi = pytest.mark.mpi


def played(queue, batch_s, ask=0.5):
    """Replicas that need so many seconds for each batch, and ask for the next when so much of one is done -> batches of
    each, and when the last one ends."""
    n = len(batch_s)
    events = [(0.0, i, "ask", None) for i in range(n)]
    done, busy_until, last_s = [[] for _ in range(n)], [0.0] * n, 0.0
    while events:
        events.sort(key=lambda event: (event[0], event[2]))
        now_s, i, what, part = events.pop(0)
        if what == "ask":
            queue.ask(i, now_s)
        elif what == "leave":
            queue.leave(i)
        else:
            queue.done(i, part, batch_s[i], now_s)
            done[i].append(part)
            last_s = now_s
        for j, given in queue.answers(now_s):
            if given is None:
                events.append((max(busy_until[j], now_s), j, "leave", None))
            else:
                begin_s = max(busy_until[j], now_s)
                busy_until[j] = begin_s + batch_s[j]
                events += [(begin_s + ask * batch_s[j], j, "ask", None), (busy_until[j], j, "done", given)]
    assert queue.over
    return done, last_s


@pytest.mark.parametrize("batch_s", [[1.0] * 4, [1 / 0.7, 1 / 0.6, 1 / 0.4, 1 / 0.3], [1.0, 9.0], [2.0]])
@pytest.mark.parametrize("n_parts", [0, 1, 3, 78])
def test_every_batch_once_and_no_slow_replica_keeps_the_others_waiting(batch_s, n_parts):
    done, last_s = played(Queue(range(n_parts), len(batch_s)), batch_s)
    assert sorted(part for mine in done for part in mine) == list(range(n_parts))
    assert all(mine == sorted(mine) for mine in done)
    ideal_s = n_parts / sum(1 / s for s in batch_s)
    # the fastest alone can always end so late; before speeds are known, each is given one
    assert last_s <= max(ideal_s + min(batch_s), (max(batch_s) * (n_parts > 0)) * 2) + 1e-9
    if n_parts == 78:
        assert last_s <= 1.05 * ideal_s or len(batch_s) == 2


def test_answers_in_the_order_of_a_virtual_clock():
    """A question that comes first may be of a later time than one that is still to come."""
    queue = Queue(range(9), 2, in_time=True)
    queue.ask(1, 0.0)
    assert queue.answers(0.0) == [(1, 0)]  # nobody can ask earlier
    queue.ask(1, 5.0)
    assert queue.answers(5.0) == []  # replica 0 was last heard of at 0
    queue.ask(0, 0.0)
    assert queue.answers(5.0) == [(0, 1)]
    queue.ask(0, 2.0)
    assert queue.answers(5.0) == [(0, 2)]
    queue.ask(0, 7.0)
    assert queue.answers(7.0) == [(1, 3)]
    queue.stop()
    assert queue.answers(7.0) == [(0, None)]
    queue.leave(1)
    assert not queue.over and not queue.answers(7.0)
    queue.leave(0)
    assert queue.over


@mpi
def test_letters_come_whole_and_in_order(comm):
    post, size = Post(comm), comm.Get_size()
    draw = np.random.default_rng(comm.rank)
    big = draw.standard_normal((300, 700)).astype(np.float32)  # leaves when it is asked for
    for number, target in enumerate([*range(size)] * 2):
        arrays = {"big": big, "text": np.array(["ä\0b", ""], object), "none": np.empty((0, 3), bool)}
        post.send(target, {"number": number}, arrays)
    seen = []
    while len(seen) < 2 * size:
        seen += post.letters()
    post.flush()
    for source in range(size):
        first, second = (letter for letter in seen if letter.source == source)
        assert (first.head["number"], second.head["number"]) == (comm.rank, comm.rank + size)
        want = np.random.default_rng(source).standard_normal((300, 700)).astype(np.float32)
        np.testing.assert_array_equal(second.arrays["big"], want)
        assert second.arrays["text"].tolist() == ["ä\0b", ""] and second.arrays["none"].shape == (0, 3)
    post.close()


@mpi
def test_a_busy_rank_delays_a_letter_by_few_looks(comm, tmp_path):
    """Ranks that compute between two looks, in step by a file, so that no other call makes MPI move anything."""
    steps = Path(broadcast_text(comm, str(tmp_path / "steps")))
    if comm.rank == 0:
        np.zeros(comm.size, np.int64).tofile(steps)
    comm.Barrier()
    counts, post = np.memmap(steps, np.int64, "r+"), Post(comm)
    big, asked, taken = np.ones((8, 3, 224, 224), np.float32), -1, []
    for step in range(60):
        if comm.rank and asked < 0 and len(taken) < 3:
            post.send(0, {"what": "ask"})
            asked = step
        for letter in post.letters():
            if comm.rank == 0:
                post.send(letter.source, {"what": "batch"}, {"inputs": big})
            else:
                taken.append(step - asked)
                asked = -1
                assert (letter.arrays["inputs"] == 1).all()
        counts[comm.rank] += 1
        while counts.min() <= step:
            time.sleep(1e-3)
    post.flush()
    post.close()
    if comm.rank:  # the first letters also connect the ranks
        assert len(taken) == 3 and max(taken[1:]) <= LOOKS, taken
    assert [asks_at(n) for n in (1, 4, 6, 10, 12, 30)] == [0, 0, 1, 5, 6, 15]


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder, with a job."""
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        write_job(shared)
    comm.Barrier()
    return shared


def execute(comm, folder, *overrides):
    comm.Barrier()
    deck = load_deck(folder / "deck.toml", overrides)
    parallel = deck.parallel
    model = astra_mpi.load(
        str(deck.model.path),
        comm=comm,
        strategy=parallel.spec,
        grid=parallel.grid,
        network=parallel.network,
        clock=parallel.clock,
        speed=parallel.speed,
    )
    return runner.run(deck, model, comm), model


def outputs(folder, name):
    with h5py.File(folder / name, locking=False) as file:
        return {key: values[()] for key, values in file["outputs"].items()}, json.loads(file.attrs["summary"])


@mpi
def test_same_bits_as_one_rank_whoever_computes(comm, folder):
    """In input order, from replicas of one rank; of two where the number is even, against as many ranks alone."""
    single = comm.Split(comm.rank)
    if comm.rank == 0:
        execute(single, folder, "output.path=" + str(folder / "one.h5"))
    summary, _ = execute(comm, folder, f"parallel.grid={comm.size}x1x1")
    one, _ = outputs(folder, "one.h5")
    many, told = outputs(folder, "out.h5")
    assert one["embedding"].tobytes() == many["embedding"].tobytes()
    if comm.size > 1:
        assert told == summary and told["grid"] == f"{comm.size}x1x1" and told["ranks"] == comm.size
        assert sum(mine["items"] for mine in told["replicas"]) == 11
        assert sum(mine["batches"] for mine in told["replicas"]) == 6
        assert told["elapsed_s"] > 0 and len(told["latency_s"]["compute_by_rank"]) == comm.size
        assert told["contributed_bytes"] == told["formula_bytes"] == [0] * comm.size
        again, _ = execute(comm, folder, f"parallel.grid={comm.size}x1x1")
        assert again == summary
        with pytest.raises(InputError, match=r"parallel\.grid = .*now it is None"):
            execute(comm, folder)
    if comm.size % 2 == 0:
        pair = comm.Split(comm.rank // 2, comm.rank)
        if comm.rank < 2:
            execute(pair, folder, "parallel.strategy=sp", f"output.path={folder / 'pair.h5'}")
        summary, _ = execute(
            comm,
            folder,
            "parallel.strategy=sp",
            f"parallel.grid={comm.size // 2}x1x2",
            "output.path=" + str(folder / "pairs.h5"),
        )
        comm.Barrier()
        pair_values, alone = outputs(folder, "pair.h5")
        assert pair_values["embedding"].tobytes() == outputs(folder, "pairs.h5")[0]["embedding"].tobytes()
        assert sum(summary["contributed_bytes"]) == sum(alone["contributed_bytes"]) == sum(summary["formula_bytes"])


@mpi
def test_a_signal_ends_all_replicas_and_the_job_goes_on(comm, folder):
    """On the last rank, in its first batch; what others have been given may still be finished."""
    names = [f"parallel.grid={comm.size}x1x1", "run.batch=1"]
    deck = load_deck(folder / "deck.toml", names)
    model = astra_mpi.load(str(deck.model.path), comm=comm, strategy="single", grid=deck.parallel.grid)
    inner = getattr(model, "model", model)
    forward, n_calls = inner.family.head, []

    def head(*args):
        n_calls.append(1)
        if comm.rank == comm.size - 1 and len(n_calls) == 1:
            signal.raise_signal(signal.SIGTERM)
        elif comm.rank < comm.size - 1:
            time.sleep(0.3)
        return forward(*args)

    inner.family.head = head
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM after batch \d; the same command goes on") as caught:
        runner.run(deck, model, comm)
    assert caught.value.exit_code == 143
    comm.Barrier()
    kept = sorted(path.name for path in (folder / "out.h5.parts").glob("part-*.h5"))
    comm.Barrier()
    assert 1 <= len(kept) < 11
    summary, _ = execute(comm, folder, *names)
    assert summary["items"] == 11
    single = comm.Split(comm.rank)
    if comm.rank == 0:
        execute(single, folder, "run.batch=1", "output.path=" + str(folder / "one.h5"))
        one, many = (outputs(folder, name)[0]["embedding"] for name in ("one.h5", "out.h5"))
        assert one.tobytes() == many.tobytes()


@mpi
@pytest.mark.parametrize("where", ["pass", "reading", "writing"])
def test_a_failure_anywhere_is_every_rank_s(comm, folder, where, monkeypatch):
    deck = load_deck(folder / "deck.toml", [f"parallel.grid={comm.size}x1x1"])
    model = astra_mpi.load(str(deck.model.path), comm=comm, strategy="single", grid=deck.parallel.grid)
    inner = getattr(model, "model", model)
    if where == "pass" and comm.rank == comm.size - 1:
        monkeypatch.setattr(inner.strategy, "answered", lambda x: 1 / 0)
    elif where == "reading":
        monkeypatch.setattr("astra_mpi.inputs.sources.TextSource.batch", failing(InputError("item 4 is bad"), 3))
    elif where == "writing":
        monkeypatch.setattr("astra_mpi.job.results.Results.write", failing(AstraError("the disk is full"), 3))
    said = {"pass": "ZeroDivisionError", "reading": "item 4 is bad", "writing": "the disk is full"}[where]
    with pytest.raises(AstraError, match=said) as caught:
        runner.run(deck, model, comm)
    assert caught.value.collective
    if where == "pass" and comm.size > 1:
        assert str(caught.value).startswith(f"rank {comm.size - 1}: ")
    monkeypatch.undo()
    summary, _ = execute(comm, folder, f"parallel.grid={comm.size}x1x1")
    assert summary["items"] == 11


def failing(error, at):
    """A method that fails when it is called for the third time."""
    calls = []

    def call(self, *args):
        calls.append(1)
        if len(calls) >= at:
            raise error
        return kept(self, *args)

    from astra_mpi.inputs.sources import TextSource
    from astra_mpi.job.results import Results

    kept = TextSource.batch if isinstance(error, InputError) else Results.write
    return call


@mpi
def test_fast_replicas_take_more_by_the_virtual_clock(comm, folder):
    if comm.size < 2:
        pytest.skip("two ranks or more")
    speed = [4.0] * (comm.size - 1) + [1.0]  # factors of CPU time
    summary, _ = execute(
        comm,
        folder,
        f"parallel.grid={comm.size}x1x1",
        "parallel.clock=virtual",
        "parallel.network=100Gbps,rtt=0",
        f"parallel.speed={speed}",
        "run.batch=1",
    )
    batches = [mine["batches"] for mine in summary["replicas"]]
    assert sum(batches) == 11 and batches[-1] > max(batches[:-1])
    assert summary["elapsed_s"] < summary["metrics"]["forward_s"]


@mpi
def test_run_names_a_better_grid_and_auto_takes_it(comm, folder, capfd):
    """On a link that is too slow to share tokens over, and slow ranks, by the virtual clock."""
    if comm.size < 2:
        pytest.skip("two ranks or more")
    slow = ["parallel.network=1Mbps,rtt=20ms", "parallel.clock=virtual", "parallel.speed=1e3", "run.resume=false"]

    def run(*more):
        comm.Barrier()
        args = _parse(["run", str(folder / "deck.toml"), *slow, *more])
        assert args.run(args, comm) == 0
        return capfd.readouterr().err

    said = run("parallel.strategy=sp")
    if comm.rank == 0:
        assert f"grid {comm.size}x1x1 (whole sequences on ranks, exact) is predicted to finish this job" in said
        assert f"parallel.grid={comm.size}x1x1" in said
    assert "predicted to finish" not in run(f"parallel.grid={comm.size}x1x1")
    run("parallel.grid=auto", "run.batch=1")
    comm.Barrier()
    _, told = outputs(folder, "out.h5")
    assert told["grid"] == told["choices"]["grid"] == f"{comm.size}x1x1"
    assert told["deck"]["parallel"]["grid"] == "auto"
