"""calibrate: block by block as all at once, on any number of ranks and threads; failures, interrupts, memory."""

import threading
import time
import tracemalloc

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.calibrate import activations, closed_loop, fit_codec, fitting, sharing
from astra_mpi.calibrate.awaiting import costliest, lateness
from astra_mpi.calibrate.passes import Recorder
from astra_mpi.calibrate.work import shares
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import energy, fit_codebook
from astra_mpi.codec.innovation import served
from astra_mpi.codec.kinds import residual
from astra_mpi.codec.metric import keys_values_metric, pulled_back
from astra_mpi.codec.subspace import STEP, with_subspace
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError, InputError
from astra_mpi.strategies.coded.remote import projection
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, vit_config

CONFIGS = {"vit": vit_config, "bert": bert_config, "gpt2": gpt2_config, "llama": llama_config}
CODECS = {
    "residual": dict(stages=2, codebook_size=16),
    "grouped": dict(kind="grouped", groups=3, codebook_size=16),
    "one group, subspace": dict(kind="grouped", codebook_size=16, encoder="subspace"),
    "exact": dict(stages=2, codebook_size=8, encoder="exact"),
}
SITES = ("hidden", "normed", "kv")


def batches(config, n=7):
    n_tokens = None if config.family == "vit" else 20
    ragged = config.family != "vit"
    return [random_batch(config, 8, n_tokens, seed=i, ragged=ragged) for i in range(n)]


def all_at_once(file, given, config, n_samples, metric):
    """Whole forward passes, all blocks' activations side by side, then the fits, as the method says."""
    backend = get_backend("numpy", MPI.COMM_SELF)
    model, kernels = Model(file, MPI.COMM_SELF, backend), backend.kernels
    found = []
    for inputs, mask in given:
        model.strategy = recorder = Recorder(model.parts(), config.site)
        recorder.keep = lambda payload: found.append(payload.copy())
        model(inputs, mask)
    projects = config.encoder != "exact" and config.full_width
    n = n_samples + (n_samples // 8 if projects else 0)
    n_blocks, parts = file.config.n_layers, 2 if config.site == "kv" else 1
    books = []
    for i in range(n_blocks):
        for part, x in enumerate(np.split(np.concatenate(found[i::n_blocks])[:n], parts, axis=1)):
            x, b = np.ascontiguousarray(x), None
            if metric == "keys-values" and config.site != "kv" and config.full_width:
                b = keys_values_metric(projection(model.blocks[i], config.site))
                x = x @ b.astype(np.float32)
            seed, n_fitted = i * parts + part, len(x) - len(x) // 9 if projects else len(x)
            book = fit_codebook(x[:n_fitted], config, seed, kernels)
            if projects:
                book = with_subspace(book, x[:n_fitted], x[n_fitted:], config.encoder, kernels, anyway=b is not None)
            books.append(book if b is None else pulled_back(book, b))
    pairs = zip(*(books[part::parts] for part in range(parts)), strict=True)
    return Codec(config, tuple(BlockCodec(pair) for pair in pairs))


def same(a, b):
    """To the bit, what the file keeps beside the digest too."""
    growths = [[book.error_growth for block in codec.blocks for book in block.codebooks] for codec in (a, b)]
    assert a.digest == b.digest and growths[0] == growths[1]


@pytest.mark.parametrize("family", CONFIGS)
def test_block_by_block_as_all_at_once(family):
    """Every site, kind and metric, the last batches not needed and the last one cut, on one thread and on three."""
    config = CONFIGS[family]()
    file, given = model_file(config), batches(config)
    for site in SITES:
        for codec in CODECS.values():
            coding = CodecConfig(site, **codec)
            for metric, threads in (("plain", 1), ("keys-values", 3)):
                streamed = fit_codec(file, given, coding, n_samples=330, metric=metric, threads=threads)
                same(streamed, all_at_once(file, given, coding, 330, metric))


@pytest.mark.mpi
def test_ranks_share_the_work_and_change_nothing(comm):
    config = llama_config(n_layers=5)
    file, given = model_file(config), batches(config)
    told = []
    for site in SITES:
        options = dict(n_samples=400, threads=2, progress=lambda done, total: told.append((done, total)))
        coding = CodecConfig(site, stages=2, codebook_size=16, encoder="subspace")
        codec = fit_codec(file, given, coding, comm=comm, **options)
        assert (codec is None) == (comm.rank > 0)
        if codec is not None:
            same(codec, fit_codec(file, given, coding, n_samples=400))
            assert told == sorted(told) and told[-1] == (5, 5)
            told.clear()


@pytest.mark.mpi
def test_one_rank_that_fails_ends_all(comm, monkeypatch):
    config = llama_config(n_layers=24)
    file, given, calls = model_file(config), batches(config), []
    last = min(comm.size - 1, 2)  # of many ranks, those behind may have no block to fit

    def slow_or_broken(*arguments):
        calls.append(1)
        if comm.rank == last:
            raise InputError("the activations hold NaN")
        time.sleep(0.2)
        return fit_codebook(*arguments)

    monkeypatch.setattr(fitting, "fit_codebook", slow_or_broken)
    said = "the activations hold NaN" if last == 0 else f"rank {last}: the activations hold NaN"
    with pytest.raises(InputError, match=said):
        fit_codec(file, given, CodecConfig("kv", stages=1, codebook_size=8), comm=comm, n_samples=200)
    assert comm.rank > 0 or len(calls) < 2 * 24 // comm.size  # fewer than its share


def test_an_interrupt_leaves_no_thread_at_work():
    config = bert_config(n_layers=6)
    file, given = model_file(config), batches(config)

    def interrupted(done, total):
        if done > 1:
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fit_codec(file, given, CodecConfig(stages=4, codebook_size=64), n_samples=900, threads=2, progress=interrupted)
    assert threading.active_count() == before


def test_no_tokens():
    config = bert_config()
    nothing = (np.zeros((2, 3), np.int32), np.zeros((2, 3), bool))
    for given in ([], [nothing]):
        with pytest.raises(InputError, match="no tokens to calibrate on"):
            fit_codec(model_file(config), given, CodecConfig())


@pytest.mark.parametrize("site", ["hidden", "kv"])
def test_memory_does_not_grow_with_blocks(site):
    """By less than half of what 12 more blocks have, from 3 blocks to 15: how much two threads hold at once varies."""
    peaks, n_bytes = [], 0
    for n_layers in (3, 15):
        config = llama_config(n_layers=n_layers, d_model=96)
        file, given = model_file(config), batches(config, 18)
        fit = dict(n_samples=1600, threads=2)
        fit_codec(file, given[:1], CodecConfig(site, stages=1, codebook_size=4), n_samples=50)  # compiled, joined
        tracemalloc.start()
        codec = fit_codec(file, given, CodecConfig(site, stages=1, codebook_size=4), **fit)
        books = sum(b.entries.nbytes + b.searched.nbytes + (0 if b.basis is None else b.basis.nbytes)
                    for block in codec.blocks for b in block.codebooks)  # fmt: skip
        joined = n_layers * 4 * config.d_model * (config.d_model + 2 * config.d_kv)  # weights of the attention
        peaks.append(tracemalloc.get_traced_memory()[1] - books - joined)
        tracemalloc.stop()
        n_bytes = 1800 * 4 * (2 * config.d_kv if site == "kv" else config.d_model)
    assert peaks[1] - peaks[0] < 6 * n_bytes, f"{peaks} bytes, a block's samples {n_bytes}"


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 40])
@pytest.mark.parametrize("fitting_cost", [0.0, 0.5, 8.0])
def test_shares_end_together(size, fitting_cost):
    parts = shares(30, size, 1.0, fitting_cost)
    assert [i for part in parts for i in part] == list(range(30)) and len(parts) == size
    times = [part.stop + len(part) * fitting_cost if part else 0.0 for part in parts]
    low = max(30 + fitting_cost, 30 * fitting_cost / size)  # somebody passes all blocks and fits the last one
    assert max(times) <= 30 + 30 * fitting_cost / size + 1 + fitting_cost and max(times) >= min(low, 30)


@pytest.mark.mpi
@pytest.mark.parametrize(
    "codec", [dict(stages=3, inputs=2, sinks=1), dict(kind="grouped", groups=3)], ids=["residual", "grouped"]
)
def test_predicted_codes_do_not_depend_on_who_fits_them(comm, codec, monkeypatch):
    """Ranks and threads share passes and searches, down to ranks that have no batch and searches of few rows."""
    monkeypatch.setattr(sharing, "_WORTH", 0)
    config = llama_config(n_layers=4)
    file, given, told = model_file(config), batches(config, 3), []
    coding = CodecConfig("normed", codebook_size=16, predict="linear", **codec)
    options = dict(n_samples=190, progress=lambda done, total: told.append((done, total)))
    found = fit_codec(file, given, coding, comm=comm, threads=2, **options)
    assert (found is None) == (comm.rank > 0)
    assert comm.rank == 0 or not told  # which has no progress to show
    if found is not None:
        assert told == sorted(told) and told[-1] == (4, 4)
        same(found, fit_codec(file, given, coding, n_samples=190))


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("module", "name"), [(closed_loop, "fit_predictor"), (closed_loop, "no_codebook"), (residual, "refine")]
)
def test_a_rank_that_fails_in_a_shared_fit_holds_up_nobody(comm, module, name, monkeypatch):
    """Between shared searches, in the second block that is fitted: all raise what the last rank does."""
    monkeypatch.setattr(sharing, "_WORTH", 0)
    config, whole, calls = llama_config(n_layers=4), getattr(module, name), []

    def fails(*args, **options):
        calls.append(None)
        if comm.rank == comm.size - 1 and len(calls) == (1 if name == "no_codebook" else 2):
            raise MemoryError("no room")
        return whole(*args, **options)

    monkeypatch.setattr(module, name, fails)
    coding = CodecConfig("normed", codebook_size=16, stages=2, predict="linear")
    file, given = model_file(config), batches(config, 3)
    with pytest.raises(AstraError, match="no room"):
        fit_codec(file, given, coding, comm=comm, n_samples=190)
    found = fit_codec(file, given, coding, comm=comm, n_samples=190)
    assert (found is None) == (comm.rank > 0)


def test_predicted_codes_are_fitted_to_the_states_that_ranks_will_have():
    """What is left of a block's inputs is less than what there was, each block from the states that its codes gave."""
    config = llama_config(n_layers=4)
    file, given = model_file(config), batches(config, 12)
    kernels = get_backend("numpy", MPI.COMM_SELF).kernels
    for metric, encoder, rank in (("keys-values", "auto", 8), ("plain", "exact", 0)):
        coding = CodecConfig("normed", stages=2, codebook_size=16, encoder=encoder, predict="linear")
        codec = fit_codec(file, given, coding, n_samples=900, metric=metric, rank=rank)
        true = activations(Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF)), given, "normed", 900)
        assert codec.blocks[0].predictor is None and not codec.blocks[0].codebooks[0].entries.any()
        state = true[0]
        for block, rows in zip(codec.blocks[1:], true[1:], strict=True):
            width = block.codebooks[0].width
            assert block.predictor.rank == (rank or width)
            expected = block.predictor.predict(state, None, kernels)
            left = rows - expected
            assert np.abs(left.mean(axis=0)).max() < 0.02 * np.abs(rows).max()  # the bias took the mean, by weight
            assert energy(left) < 0.9 * energy(rows - rows.mean(axis=0))
            state = expected + block.decode(block.encode(left, kernels), kernels)
            if encoder == "exact":
                assert energy(rows - state) < energy(left)
                assert block.codebooks[0].basis is None or block.codebooks[0].basis.shape == (width, width)


def test_blocks_that_lateness_costs_most_are_awaited():
    rng = np.random.default_rng(0)
    missed, left, root = (rng.normal(size=shape).astype(np.float32) for shape in ((50, 6), (50, 6), (6, 6)))
    weighing = root @ root.T
    costs = [np.mean([row @ weighing @ row for row in rows]) for rows in (missed, left)]
    assert lateness(weighing, missed, left) == pytest.approx(costs[0] - costs[1], rel=1e-3)
    costs = np.array([9.0, 0.1, 5.0, 0.2, 6.0, 0.1, 0.3, -0.4, 0.1, 0.1, 0.1])
    assert costliest(costs, None) == (2, 4) and costliest(costs, 1) == (4,) and costliest(costs, 3) == (2, 4, 6)
    assert costliest(np.ones(30), None) == costliest(costs, 0) == costliest(np.zeros(1), None) == ()
    config = llama_config(n_layers=4)
    coding = CodecConfig("normed", codebook_size=16, stages=2, predict="linear")
    scales = [1.0, 1.0, 100.0, 1.0]

    def weigh(_):
        return [[scale * np.eye(config.d_model)] for scale in scales]

    given = dict(n_samples=300, metric="output", weigh=weigh)
    codec = fit_codec(model_file(config), batches(config, 3), coding, n_awaited=1, **given)
    assert codec.config.awaited == (2,)
    scales[2] = 0.01
    codec = fit_codec(model_file(config), batches(config, 3), coding, n_awaited=2, **given)
    assert codec.config.awaited == (1, 3)


def test_bits_go_where_they_lower_the_error_most():
    """As many directions as lie above the level of reverse water-filling, found by halving."""
    variances = 1 / np.arange(1, 101.0) ** 1.5
    for bits in (4, 40, 400):
        low, high = 0.0, 1.0
        for _ in range(100):
            level = (low + high) / 2
            spent = np.log2(np.maximum(variances / level, 1)).sum() / 2
            low, high = (level, high) if spent > bits else (low, level)
        above = int((variances > high).sum())
        assert served(variances, bits) == min(-(-above // STEP) * STEP, 100)
    assert served(np.zeros(32), 8) % STEP == 0
