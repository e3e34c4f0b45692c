"""The batch job around a small stand-in model, at any number of ranks."""

import json
import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files import checksum
from astra_mpi.inputs.sources import TokenSource
from astra_mpi.job import runner
from astra_mpi.network.clock import WallClock
from astra_mpi.ranks.broadcast import broadcast_batch, broadcast_text
from astra_mpi.ranks.signals import SIGNALS, Interrupted

pytestmark = pytest.mark.mpi

N_ITEMS, BATCH = 11, 3
LENGTHS = [5, 1, 7, 2, 2, 9, 3, 1, 4, 6, 8]


class Seconds(WallClock):
    """A batch takes a second on rank 0, and one more on each rank than on the one before; clocks begin apart."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rank, self.met_s = model, model.comm.Get_rank(), None

    def now(self):
        begin_s = 100.0 * self.rank if self.met_s is None else self.met_s
        return begin_s + self.model.calls * (1.0 + self.rank)

    def meet(self, comm):
        self.met_s = self.latest(comm)


class StandIn:
    """Two sums over the tokens of each item; `before` is called with the number of the call."""

    def __init__(self, comm, before=lambda call: None, n_classes=0):
        self.comm, self.before, self.calls = comm, before, 0
        self.config = SimpleNamespace(family="stand-in", n_classes=n_classes)
        self.tokenizer = self.preprocess = None
        self.digest, self.codec_digest = "model", "codec"
        self.report = {}
        self.clock = Seconds(self)

    def __call__(self, inputs, mask=None):
        self.calls += 1
        self.before(self.calls)
        size = self.comm.Get_size()
        seconds = {"total": float(self.calls), "compute": 0.75 * self.calls, "exchange_wait": 0.25 * self.calls}
        self.report = {
            "family": "stand-in",
            "strategy": "astra",
            "ranks": size,
            "tokens": mask.sum(axis=1).tolist(),
            "codec": None,
            "bits_per_token_per_block": 8,
            "contributed_bytes": [self.calls] * size,
            "formula_bytes": [self.calls] * size,
            "port_bytes": [self.calls] * size,
            "paper_bytes": self.calls,
            "other_bytes": 10,
            "network": "real",
            "accounting": None,
            "clock": "wall",
            "speed": [1.0] * size,
            "missing": {"treatment": "drop", "messages": 4, "lost": self.calls, "late": 0},
            "distinct_keys": None,
            "latency_s": {**seconds, "phases": {}},
            "choices": {"remote": "gemm"},
        }
        ids = np.where(mask, inputs, 0)
        return np.stack([ids.sum(axis=1), (ids % 2).sum(axis=1)], axis=1).astype(np.float32)


def tokens():
    draw = np.random.default_rng(0)
    return [draw.integers(1, 100, n) for n in LENGTHS]


def expected():
    return np.array([[ids.sum(), (ids % 2).sum()] for ids in tokens()], dtype=np.float32)


def open_source(section, tokenizer, preprocess, config):
    labels = np.argmax(expected(), axis=1)
    labels[[0, 4]] = 1  # always wrong: the first sum is the larger
    return TokenSource(tokens(), [np.ones(n, bool) for n in LENGTHS], labels, "input")


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder."""
    return Path(broadcast_text(comm, str(tmp_path)))


def make_deck(comm, folder, *overrides):
    path = folder / "deck.toml"
    if comm.Get_rank() == 0:
        path.write_text(
            '[model]\npath="m.h5"\n[input]\npath="in.npy"\nkind="tokens"\n[task]\nname="embed"\n'
            f'[run]\nbatch={BATCH}\n[output]\npath="out.h5"\n'
        )
    comm.Barrier()
    return load_deck(path, overrides)


def execute(comm, folder, model, *overrides):
    return runner.run(make_deck(comm, folder, *overrides), model, comm, open_source=open_source)


def results(comm, folder, name="embedding"):
    """What rank 0 wrote; read there, the same for all."""
    with h5py.File(folder / "out.h5", locking=False) as file:
        values = file[f"outputs/{name}"][()]
    comm.Barrier()
    return values


def test_embed(comm, folder):
    model = StandIn(comm)
    summary = execute(comm, folder, model)
    assert model.calls == 4
    np.testing.assert_array_equal(results(comm, folder), expected())
    assert summary["tokens"] == sum(LENGTHS) and summary["items"] == N_ITEMS
    assert summary["contributed_bytes"] == [1 + 2 + 3 + 4] * comm.Get_size()
    assert summary["other_bytes"] == 40
    assert summary["paper_bytes"] == 1 + 2 + 3 + 4
    assert summary["missing"] == {"treatment": "drop", "messages": 16, "lost": 10, "late": 0}
    assert summary["latency_s"]["total"] == 2.0  # the lower of the two middle batches
    assert summary["metrics"] == {"forward_s": 10.0} and summary["elapsed_s"] == 4.0 * comm.Get_size()
    assert summary["deck"]["run"] == {"batch": BATCH, "resume": True, "seed": 0, "threads": None, "watchdog": "300s"}
    assert json.loads((folder / "out.json").read_text()) == summary


def test_classify_with_labels(comm, folder):
    summary = execute(comm, folder, StandIn(comm, n_classes=2), "task.name=classify")
    np.testing.assert_array_equal(results(comm, folder, "logits"), expected())
    assert results(comm, folder, "class").tolist() == [0] * N_ITEMS
    assert summary["metrics"]["accuracy"] == pytest.approx((N_ITEMS - 2) / N_ITEMS)


def test_task_that_does_not_fit_the_model(comm, folder):
    with pytest.raises(InputError, match=r"task\.name = 'embed' does not fit .*m\.h5.*give classify") as caught:
        execute(comm, folder, StandIn(comm, n_classes=2))
    assert caught.value.collective


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signal_on_one_rank_stops_all_and_the_job_goes_on(comm, folder, signum):
    last = comm.Get_rank() == comm.Get_size() - 1
    handlers = [signal.getsignal(s) for s in SIGNALS]
    model = StandIn(comm, lambda call: signal.raise_signal(signum) if call == 2 and last else None)
    with pytest.raises(Interrupted, match="after batch 2; the same command goes on") as caught:
        execute(comm, folder, model)
    assert caught.value.exit_code == 128 + signum and caught.value.collective
    assert [signal.getsignal(s) for s in SIGNALS] == handlers
    assert model.calls == 2
    again = StandIn(comm)
    summary = execute(comm, folder, again)
    assert again.calls == 2  # no batch twice
    np.testing.assert_array_equal(results(comm, folder), expected())
    assert summary["contributed_bytes"] == [1 + 2 + 1 + 2] * comm.Get_size()


def test_failure_on_one_rank_is_raised_on_all_and_the_job_goes_on(comm, folder):
    """The engine raises on all ranks alike; here the failure is rank 0's own, outside the model."""

    class Source(TokenSource):
        def batch(self, start, stop):
            if start == 2 * BATCH:
                raise InputError("item 6 is bad; remove it")
            return super().batch(start, stop)

    def broken(*_):
        return Source(tokens(), [np.ones(n, bool) for n in LENGTHS], None, "input")

    with pytest.raises(InputError, match="item 6 is bad"):
        runner.run(make_deck(comm, folder), StandIn(comm), comm, open_source=broken)
    again = StandIn(comm)
    execute(comm, folder, again)
    assert again.calls == 2
    np.testing.assert_array_equal(results(comm, folder), expected())


def test_complete_results_are_not_made_again(comm, folder):
    first = execute(comm, folder, StandIn(comm))
    comm.Barrier()
    model = StandIn(comm)
    assert execute(comm, folder, model) == first
    assert model.calls == 0
    execute(comm, folder, model, "run.resume=false")
    assert model.calls == 4
    with pytest.raises(InputError, match=r"parallel\.strategy = 'astra', now it is 'sp'"):
        execute(comm, folder, model, "parallel.strategy=sp")


def test_other_number_of_ranks_or_threads_is_refused(comm, folder):
    execute(comm, folder, StandIn(comm))
    comm.Barrier()
    with pytest.raises(InputError, match=r"run\.threads = 1, now it is 2"):
        runner.run(make_deck(comm, folder), StandIn(comm), comm, threads=2, open_source=open_source)
    alone = comm.Split(comm.Get_rank())
    if comm.Get_size() > 1 and comm.Get_rank() == 0:
        with pytest.raises(InputError, match=rf"ranks = {comm.Get_size()}, now it is 1"):
            execute(alone, folder, StandIn(alone))
    alone.Free()


def test_lost_lock_is_an_error_on_all_ranks(comm, folder):
    def steal(call):
        if comm.Get_rank() == 0:
            (folder / "out.h5.parts" / "lock").write_text('{"token": "theirs"}')

    with pytest.raises(AstraError, match="another run took over") as caught:
        execute(comm, folder, StandIn(comm, steal))
    assert caught.value.collective


@pytest.mark.parametrize("n_bytes", range(0, 16 * 1024, 1024))
def test_a_failed_write_ends_all_ranks_and_loses_nothing(comm, folder, n_bytes):
    """Files of at most so many bytes: all ranks raise the one sentence, and the same job goes on to the same bits."""
    deck = make_deck(comm, folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    said = ""
    try:
        runner.run(deck, StandIn(comm), comm, open_source=open_source)
    except AstraError as exc:
        said = str(exc)
        assert exc.collective and type(exc) is AstraError
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said == broadcast_text(comm, said)
    assert not said or ("cannot be written (File too large)" in said and str(folder) in said)
    assert bool(said) if n_bytes < 5 * 1024 else n_bytes < 14 * 1024 or not said
    assert not [path.name for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name.startswith("lock")]
    comm.Barrier()
    execute(comm, folder, StandIn(comm))
    np.testing.assert_array_equal(results(comm, folder), expected())
    with h5py.File(folder / "out.h5", locking=False) as file:
        assert checksum.fits(file)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (5, 7)])
def test_broadcast_tokens(comm, shape):
    draw = np.random.default_rng(1)
    ids, mask = draw.integers(1, 2**31 - 1, shape, dtype=np.int32), draw.random(shape) < 0.5
    root = comm.Get_rank() == 0
    got, kept = broadcast_batch(comm, ids if root else None, mask if root else None)
    np.testing.assert_array_equal(kept, mask)
    for row, keep, sent in zip(got, mask, ids, strict=True):  # up to the last that is kept
        n = np.flatnonzero(keep).max(initial=-1) + 1
        np.testing.assert_array_equal(row, np.append(sent[:n], np.zeros(len(sent) - n, np.int32)))
    assert got.dtype == np.int32


def test_broadcast_images(comm):
    images = np.random.default_rng(2).standard_normal((2, 3, 5, 4)).astype(np.float32).transpose(0, 1, 3, 2)
    got, mask = broadcast_batch(comm, images if comm.Get_rank() == 0 else None, None)
    assert mask is None
    np.testing.assert_array_equal(got, images)
