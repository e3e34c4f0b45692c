"""The whole program with backend "cuda" on a stand-in for CuPy whose kernels run in the emulator, and on a GPU.

The stand-in refuses what CuPy refuses, and counts what comes from the device: between two blocks that is the message.
The tests marked `gpu` are run by tests/gpu.sh.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError, InputError
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.oracle.verify import verify
from helpers.architectures import on_ranks
from helpers.checkpoints import BERT, DECODERS, SIZES, VITS, check_bert, check_decoder, check_vit
from helpers.cuda_emulation.devices import GPU, device
from helpers.drafts import Half, check_all_guesses
from helpers.fakes import IMAGE_PARTS, bert_config, gpt2_config, llama_config, model_file, vit_config

pytestmark = pytest.mark.mpi

FAMILIES = {
    "vit": (vit_config(), None),
    "bert": (bert_config(), 17),
    "bert-pooler": (bert_config(pooling="pooler", has_pooler=True, normalize=True), 8),
    "gpt2": (gpt2_config(), 13),
    "llama": (llama_config(), 13),
}
CODECS = {
    "residual": CodecConfig(stages=3, codebook_size=16),
    "grouped": CodecConfig(kind="grouped", groups=5, codebook_size=10),
    "one-code": CodecConfig(stages=1, codebook_size=9),
    "normed": CodecConfig(site="normed", stages=2, codebook_size=300),
    "kv": CodecConfig(site="kv", kind="grouped", groups=2, codebook_size=16),
    "subspace": CodecConfig(stages=3, codebook_size=16, encoder="subspace"),
    "predicted": CodecConfig(site="normed", stages=3, codebook_size=16, predict="linear", inputs=2),
}
EXACT = ("single", "sp", "sp:kv:int8", "sp:float16", "tp", "bp", "bp:sp", "segment_means:3")
#: of four families times six codecs, all that differ in code
ASTRA = [("vit", codec) for codec in CODECS] + [("llama", codec) for codec in CODECS]
ASTRA += [("bert", "residual"), ("bert-pooler", "one-code"), ("gpt2", "one-code"), ("gpt2", "grouped")]
CODECS["sinks"] = CodecConfig(stages=1, codebook_size=9, sinks=2)
ASTRA += [("gpt2", "sinks"), ("llama", "sinks")]


def emulated(comm, order=0):
    if comm.size not in (1, 3):
        pytest.skip("emulated kernels take their time; 1 and 3 ranks show as much")
    return device(order, races=False)


@pytest.fixture
def cupy(comm):
    """The stand-in."""
    with emulated(comm) as module:
        yield module


@pytest.fixture(params=[0, GPU])
def anywhere(request, comm):
    """The stand-in, or CuPy and a GPU."""
    with device("gpu") if request.param == "gpu" else emulated(comm, request.param) as module:
        yield module


def models(comm, family, codec=None, transport="host", precision="float32", conditions=None):
    """The same model on the stand-in and on the CPU, and a batch for them."""
    config, n_tokens = FAMILIES[family]
    file = model_file(config, codec)
    backends = get_backend("cuda", comm, transport, precision), get_backend("numpy", comm)
    inputs, mask = random_batch(config, 3, n_tokens, seed=1, ragged=True)
    return *(Model(file, comm, backend, None, conditions) for backend in backends), inputs, mask


def assert_same(comm, gpu, cpu, inputs, mask, tolerance=2e-5, **options):
    got, want = gpu(inputs, mask, **options), cpu(inputs, mask, **options)
    if not options.get("gather"):
        got, want = [got], [want]
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert isinstance(a, np.ndarray)
            assert a.dtype == np.float32
            assert np.abs(a - b).max() <= tolerance * max(1.0, np.abs(b).max())
    for key in ("contributed_bytes", "formula_bytes", "other_bytes", "distinct_keys", "strategy"):
        assert gpu.report[key] == cpu.report[key], key


@pytest.mark.parametrize("strategy", EXACT)
@pytest.mark.parametrize("family", FAMILIES)
def test_strategies_equal_the_cpu(comm, anywhere, family, strategy):
    gpu, cpu, inputs, mask = models(comm, family)
    if gpu.obstacle(strategy):
        pytest.skip(gpu.obstacle(strategy))
    for model in (gpu, cpu):
        model.use(strategy)
    assert_same(comm, gpu, cpu, inputs, mask)


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_other_parts_equal_the_cpu(comm, anywhere, name):
    """Windows, caps, norms of queries, keys and outputs; then new tokens."""
    config, site = on_ranks()[name]
    file = model_file(config, CodecConfig(site=site, stages=2, codebook_size=16, sinks=2))
    gpu, cpu = (Model(file, comm, get_backend(kind, comm)) for kind in ("cuda", "numpy"))
    inputs, mask = random_batch(config, 3, 13, seed=1, ragged=True)
    for spec in ("sp", "astra"):
        for model in (gpu, cpu):
            model.use(spec)
        assert_same(comm, gpu, cpu, inputs, mask)
        for decode in ("local", "merged"):
            new = [model.generate(inputs[:1], max_new_tokens=3, decode=decode) for model in (gpu, cpu)]
            np.testing.assert_array_equal(*new)


@pytest.mark.parametrize(
    "codec",
    [
        dict(stages=((1, 3), 0, (2, 0)), codebook_size=9, near=2, near_stages=2),
        dict(kind="scalar", vector_bits=((7, 0), 12, (3, 18)), codebook_size=16),
    ],
    ids=["near", "scalar"],
)
def test_bits_of_blocks_equal_the_cpu(comm, anywhere, codec):
    """Blocks, and keys and values, that differ in their codes; residual block 1 sends nothing."""
    file = model_file(llama_config(n_layers=3), CodecConfig(site="kv", **codec))
    gpu, cpu = (Model(file, comm, get_backend(kind, comm)) for kind in ("cuda", "numpy"))
    inputs, mask = random_batch(file.config, 3, 13, seed=1, ragged=True)
    for model in (gpu, cpu):
        model.use("astra")
    assert_same(comm, gpu, cpu, inputs, mask)


@pytest.mark.parametrize(("family", "codec"), ASTRA)
def test_astra_equals_the_cpu(comm, anywhere, family, codec):
    gpu, cpu, inputs, mask = models(comm, family, CODECS[codec])
    ways = (
        ("astra", "table", True),
        ("astra", "table", False),
        ("astra", "gemm", False),
        ("astra:inputs", "table", True),
    )
    for spec, remote, counted in ways:
        for model in (gpu, cpu):
            model.use(spec, remote=remote, counted_keys=counted)
        gpu(inputs, mask), cpu(inputs, mask)
        coded = slice(gpu.strategy.first_coded, None)
        pairs = zip(gpu.strategy.arrived.codes[coded], cpu.strategy.arrived.codes[coded], strict=True)
        same = [np.mean(mine.get() == theirs) for mine, theirs in pairs] if gpu.strategy.sends else [1.0]
        assert min(same) > 0.98  # near ties of float32 sums in another order
        if comm.allreduce(min(same), MPI.MIN) == 1:
            assert_same(comm, gpu, cpu, inputs, mask)


@pytest.mark.parametrize("predict", ["linear", "next"])
def test_late_codes_equal_the_cpu(comm, anywhere, predict):
    """Two messages are under way, and a block without codes takes those of another."""
    config = llama_config(n_layers=5)
    file = model_file(config, CodecConfig("normed", stages=(0, 2, 2, 0, 2), codebook_size=16, predict=predict))
    gpu, cpu = (Model(file, comm, get_backend(name, comm)) for name in ("cuda", "numpy"))
    inputs, mask = random_batch(config, 3, 19, seed=1, ragged=True)
    for remote in ("table", "gemm"):
        for model in (gpu, cpu):
            model.use("astra:late", remote=remote)
            model(inputs, mask)
        pairs = zip(gpu.strategy.arrived.codes[1:], cpu.strategy.arrived.codes[1:], strict=True)
        same = [np.mean(mine.get() == theirs) for mine, theirs in pairs] if gpu.strategy.sends else [1.0]
        assert min(same) > 0.95  # near ties of float32 sums in another order
        if comm.allreduce(min(same), MPI.MIN) == 1:
            assert_same(comm, gpu, cpu, inputs, mask)
            assert_generates_the_same(gpu, cpu, inputs, mask, decode="local", stop=[3])


def test_halves_in_turns_equal_the_cpu(comm, anywhere):
    """Messages of both are under way while the device computes."""
    gpu, cpu, inputs, mask = models(comm, "bert", CODECS["residual"])
    gpu.halves = cpu.halves = True
    for strategy in ("sp", "tp", "astra"):
        for model in (gpu, cpu):
            model.use(strategy)
        assert_same(comm, gpu, cpu, inputs, mask)
        assert gpu.report["halves"] == (comm.size > 1 and strategy != "tp")  # sums are not begun ahead there


@pytest.mark.parametrize("part", ["registers", "projected", "probe"])
def test_image_encoders_equal_the_cpu(comm, anywhere, part):
    config = vit_config(**IMAGE_PARTS[part])
    file = model_file(config, CODECS["one-code"])
    gpu, cpu = (Model(file, comm, get_backend(name, comm)) for name in ("cuda", "numpy"))
    inputs, mask = random_batch(config, 2, seed=1)
    for spec in ("astra", "sp"):
        for model in (gpu, cpu):
            model.use(spec, remote="table")
        assert_same(comm, gpu, cpu, inputs, mask, gather=True)


@pytest.mark.parametrize("anywhere", [1, 2], indirect=True)
def test_other_orders_of_threads(comm, anywhere):
    gpu, cpu, inputs, mask = models(comm, "gpt2", CODECS["one-code"])
    for model in (gpu, cpu):
        model.use("astra", remote="table")
    assert_same(comm, gpu, cpu, inputs, mask)


@pytest.mark.parametrize("strategy", ["astra", "sp:kv", "tp", "bp:sp"])
@pytest.mark.parametrize("family", ["vit", "gpt2"])
def test_mpi_takes_device_memory(comm, cupy, family, strategy):
    gpu, cpu, inputs, mask = models(comm, family, CODECS["residual"], "cuda-aware")
    if gpu.obstacle(strategy):
        pytest.skip(gpu.obstacle(strategy))
    for model in (gpu, cpu):
        model.use(strategy)
    assert_same(comm, gpu, cpu, inputs, mask)


@pytest.mark.parametrize("strategy", ["sp", "tp", "bp", "segment_means:3", "astra"])
@pytest.mark.parametrize("family", ["vit", "llama"])
def test_half_precision_is_near(comm, anywhere, family, strategy):
    """Half rounds every activation; far codes may then differ, so that astra is only near in most numbers."""
    gpu, cpu, inputs, mask = models(comm, family, CODECS["residual"], precision="float16")
    if gpu.obstacle(strategy):
        pytest.skip(gpu.obstacle(strategy))
    for model in (gpu, cpu):
        model.use(strategy)
    got, want = gpu(inputs, mask), cpu(inputs, mask)
    error = np.abs(got - want) / max(1.0, np.abs(want).max())
    assert np.median(error) < 0.01
    assert strategy == "astra" or error.max() < 0.03


@pytest.mark.parametrize("strategy", ["astra", "sp"])
@pytest.mark.parametrize("family", ["vit", "llama"])
def test_gathered_rows(comm, anywhere, family, strategy):
    gpu, cpu, inputs, mask = models(comm, family, CODECS["kv"])
    for model in (gpu, cpu):
        model.use(strategy)
    assert_same(comm, gpu, cpu, inputs, mask, gather=True)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_likelihoods(comm, anywhere, family):
    gpu, cpu, inputs, mask = models(comm, family, CODECS["kv"])
    for model in (gpu, cpu):
        model.use("astra")
    n_context = np.array([0, 3, 5])
    got, want = gpu.nll(inputs, mask, n_context), cpu.nll(inputs, mask, n_context)
    assert np.array_equal(got[:, 1], want[:, 1])
    assert np.allclose(got, want, rtol=2e-5)


@pytest.mark.parametrize("strategy", ["astra", "sp:int8", "tp"])
def test_against_the_serial_oracle(comm, anywhere, strategy):
    gpu, _, inputs, mask = models(comm, "bert", CODECS["residual"])
    for check in verify(gpu, inputs, mask, [strategy]):
        assert check.passed, check
    comm.Barrier()


@pytest.mark.parametrize("kind", ["vit", "bert", "gpt2", "llama-3"])
def test_equals_transformers(comm, anywhere, mpi_tmp_path, monkeypatch, kind):
    """A whole model, from a Hugging Face folder to its answer, against PyTorch."""
    monkeypatch.setattr(astra_mpi, "load", functools.partial(astra_mpi.load, backend="cuda"))
    folder = Path(mpi_tmp_path)
    if kind == "vit":
        name, config = VITS["classifier"]
        check_vit(comm, folder, name, SIZES | config, "sp")
    elif kind == "bert":
        check_bert(comm, folder, BERT, np.arange(9) < np.array([[9], [4], [1]]), "mean", "sp")
    else:
        check_decoder(comm, folder, *DECODERS[kind], "sp")


@pytest.mark.parametrize("treatment", ["drop", "mean"])
@pytest.mark.parametrize("deadline", [None, "50ms"])
@pytest.mark.parametrize("codec", ["one-code", "residual"])
def test_lost_messages(comm, cupy, codec, deadline, treatment):
    conditions = [
        parse_conditions(comm.size, network="1000Mbps,loss=40%", deadline=deadline, missing=treatment, seed=4)
        for _ in range(2)
    ]
    gpu, cpu, inputs, mask = models(comm, "vit", CODECS[codec], conditions=conditions[0])
    cpu = Model(model_file(FAMILIES["vit"][0], CODECS[codec]), comm, get_backend("numpy", comm), None, conditions[1])
    for model in (gpu, cpu):
        model.use("astra", remote="table")
    got, want = gpu(inputs, mask), cpu(inputs, mask)
    if deadline is None:  # else what is late depends on the day
        assert gpu.report["missing"] == cpu.report["missing"]
        assert np.allclose(got, want, atol=2e-5 * max(1.0, np.abs(want).max()))


def test_virtual_clock(comm, cupy):
    """What is queued is done before another rank's turn begins, and counts as compute."""
    if comm.size == 1:
        pytest.skip("nobody to wait for")
    conditions = parse_conditions(comm.size, network="10Mbps,rtt=2ms", clock="virtual")
    gpu, cpu, inputs, mask = models(comm, "vit", CODECS["residual"], conditions=conditions)
    for model in (gpu, cpu):
        model.use("astra")
    assert np.allclose(gpu(inputs, mask), cpu(inputs, mask), atol=1e-4)
    assert gpu.report["latency_s"]["total"] > 0.004


@pytest.mark.parametrize("family", ["vit", "gpt2"])
@pytest.mark.parametrize("codec", ["residual", "one-code", "normed", "grouped", "predicted"])
def test_nothing_but_messages_comes_to_the_host(comm, cupy, family, codec):
    """In the block loop a rank waits once per exchange, for its codes; at the end for what is summed over ranks."""
    gpu, _, inputs, mask = models(comm, family, CODECS[codec])
    gpu.use("astra", remote="table")
    gpu(inputs, mask)  # uploads, plans
    cupy.round_trips.clear()
    pooled = []
    pool = gpu.family.pool
    gpu.family.pool = lambda *args: (pooled.append(len(cupy.round_trips)), pool(*args))[1]
    gpu(inputs, mask)
    until_pool = cupy.round_trips[: pooled[0]]
    unchecked = len(gpu.strategy.arrived.unchecked)  # codes beyond the codebook are looked for after the last block
    blocks = until_pool[: len(until_pool) - unchecked]
    own = gpu.strategy.sent_bytes(len(gpu.blocks) - 1, gpu.strategy.planned)[comm.rank]
    each = ([("get", own)] if own else []) + [("wait", 0)]
    expected = each * gpu.strategy.n_exchanges
    assert blocks == expected
    assert all(what == "get" for what, _ in until_pool[len(blocks) :])


def test_a_failing_rank_ends_all(comm, cupy):
    gpu, _, inputs, mask = models(comm, "vit", CODECS["residual"])
    gpu.use("astra")
    if comm.rank == comm.size - 1:
        real = gpu.blocks[1].queries_keys_values
        gpu.blocks[1].queries_keys_values = lambda h: (_ for _ in ()).throw(AstraError("out of memory"))
    with pytest.raises(AstraError, match="out of memory"):
        gpu(inputs, mask)
    if comm.rank == comm.size - 1:
        gpu.blocks[1].queries_keys_values = real
    gpu(inputs, mask)


def test_corrupt_codes_are_found(comm, cupy, monkeypatch):
    gpu, _, inputs, mask = models(comm, "vit", CODECS["one-code"])
    gpu.use("astra")
    if not gpu.strategy.sends:
        pytest.skip("one rank sends nothing")
    kernels = gpu.backend.kernels
    monkeypatch.setattr(kernels, "pack", lambda codes, bits: cupy.full(-(-codes.size * bits // 8), 255, np.uint8))
    with pytest.raises(AstraError, match="corrupt"):
        gpu(inputs, mask)


def test_ranks_that_share_a_gpu_are_told(comm, cupy, capfd):
    get_backend("cuda", comm)
    shared = comm.rank == 0 and comm.size > 1
    assert ("share one GPU" in capfd.readouterr().err) == shared
    cupy.n_devices[0] = comm.size
    try:
        get_backend("cuda", comm)
        assert not capfd.readouterr().err
    finally:
        cupy.n_devices[0] = 1


def test_no_gpu_is_an_error(comm, cupy):
    cupy.n_devices[0] = 0
    try:
        with pytest.raises(InputError, match="no GPU can be used here"):
            get_backend("cuda", comm)
    finally:
        cupy.n_devices[0] = 1


def test_precision_is_told_to_cublas(comm, cupy):
    for precision, wanted in (("tf32", 7), ("float32", 1)):
        backend = get_backend("cuda", comm, precision=precision)
        assert cupy.compute_types[np.float32] == wanted
        assert backend.choices["precision"] == precision


class Kept:
    """A greedy `sample` that keeps the logits it saw."""

    def __init__(self):
        self.logits = {}

    def __call__(self, logits, sequences, step):
        assert isinstance(logits, np.ndarray)
        self.logits |= {(int(s), step): row.copy() for s, row in zip(sequences, logits, strict=True)}
        return logits.argmax(axis=1)


def assert_generates_the_same(gpu, cpu, inputs, mask, **options):
    answers = []
    for model in (gpu, cpu):
        sample = Kept()
        answers.append((model.generate(inputs, mask, max_new_tokens=5, sample=sample, **options), sample.logits))
    (tokens, logits), (expected, expected_logits) = answers
    assert np.array_equal(tokens, expected)
    assert logits.keys() == expected_logits.keys()
    for key, row in logits.items():
        assert np.abs(row - expected_logits[key]).max() <= 2e-5 * max(1.0, np.abs(row).max())
    for key in ("decode", "decode_bytes", "id_bytes", "full_cache_bytes", "ended"):
        assert gpu.report["generation"][key] == cpu.report["generation"][key], key


@pytest.mark.parametrize("strategy", ["single", "sp", "sp:kv:int8", "segment_means:3"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_equals_the_cpu(comm, anywhere, family, strategy):
    gpu, cpu, inputs, mask = models(comm, family)
    if gpu.obstacle(strategy):
        pytest.skip(gpu.obstacle(strategy))
    for model in (gpu, cpu):
        model.use(strategy)
    for decode in ("local", "merged"):
        assert_generates_the_same(gpu, cpu, inputs, mask, decode=decode)
        assert gpu.report["generation"]["cache_bytes"] == cpu.report["generation"]["cache_bytes"]


@pytest.mark.parametrize("codec", ["residual", "grouped", "one-code", "kv"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_from_codes_equals_the_cpu(comm, anywhere, monkeypatch, family, codec):
    """What is kept of far tokens: rows of a table and counts, or codes, rebuilt a few at a time."""
    from astra_mpi.caches import packed

    monkeypatch.setattr(packed, "TILE", 7)
    gpu, cpu, inputs, mask = models(comm, family, CODECS[codec])
    n_compared = 0
    ways = [("astra", "table"), ("astra:inputs", "table")] + [("astra", "gemm")] * (codec == "residual")
    for spec, remote in ways:
        for model in (gpu, cpu):
            model.use(spec, remote=remote)
        gpu(inputs, mask, spread=True), cpu(inputs, mask, spread=True)
        coded = slice(gpu.strategy.first_coded, None)
        pairs = zip(gpu.strategy.arrived.codes[coded], cpu.strategy.arrived.codes[coded], strict=True)
        differ = gpu.strategy.sends and any((mine.get() != theirs).any() for mine, theirs in pairs)
        if not comm.allreduce(differ, MPI.LOR):  # else near ties of float32 sums in another order
            assert_generates_the_same(gpu, cpu, inputs, mask, decode="local", stop=[3])
            n_compared += 1
    assert n_compared


@pytest.mark.parametrize(("name", "spec", "decode"), [("llama", "astra", "local"), ("gemma2", "sp", "merged")])
def test_drafts_equal_the_cpu(comm, anywhere, monkeypatch, name, spec, decode):
    """Several new tokens of a sequence in one pass, some of them dropped again: codes of far tokens, windows."""
    check_all_guesses(monkeypatch)
    config, codec = (FAMILIES[name][0], CODECS["kv"]) if name in FAMILIES else (on_ranks()[name][0], None)
    file = model_file(config, codec)
    gpu, cpu = (Model(file, comm, get_backend(kind, comm)) for kind in ("cuda", "numpy"))
    inputs, mask = random_batch(config, 3, 11, seed=1, ragged=True)
    for model in (gpu, cpu):
        model.use(spec)
    options = dict(decode=decode, far="codes" if codec else "keys")
    known = cpu.generate(inputs, mask, max_new_tokens=5, **options)
    for model in (gpu, cpu):
        assert np.array_equal(model.generate(inputs, mask, max_new_tokens=5, **options), known)
    assert_generates_the_same(gpu, cpu, inputs, mask, draft=Half(known, config.vocab_size), **options)
    drafts = gpu.report["generation"]["drafts"]
    assert 0 < drafts["accepted"] < drafts["drafted"]
    if not codec:  # by the same model on the device, which is always right
        small = Model(file, MPI.COMM_SELF, gpu.backend)
        small.use("single")
        assert np.array_equal(gpu.generate(inputs, mask, max_new_tokens=5, draft=small, **options), known)
        drafts = gpu.report["generation"]["drafts"]
        assert 0 < drafts["accepted"] == drafts["drafted"]


class Scripted(Kept):
    """Tokens that depend on no logits, so that those of every step can be compared."""

    def __call__(self, logits, sequences, step):
        super().__call__(logits, sequences, step)
        return (7 * sequences + 3 * step) % logits.shape[1]


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("decode", ["local", "merged"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_generation_in_device_memory_and_half_precision(comm, cupy, family, decode, precision):
    gpu, cpu, inputs, mask = models(comm, family, CODECS["kv"], "cuda-aware", precision)
    found = []
    for model in (gpu, cpu):
        model.use("sp")
        sample = Scripted()
        model.generate(inputs, mask, max_new_tokens=4, decode=decode, sample=sample)
        found.append(sample.logits)
    bound = 0.03 if precision == "float16" else 2e-5
    assert found[0].keys() == found[1].keys()
    for key, row in found[0].items():
        assert np.abs(row - found[1][key]).max() < bound * max(1.0, np.abs(row).max())
    size = [part["generation"]["full_cache_bytes"] for part in (gpu.report, cpu.report)]
    assert size[0] * (2 if precision == "float16" else 1) == size[1]


@pytest.mark.parametrize("codec", ["residual", "one-code", "kv"])
@pytest.mark.parametrize("decode", ["local", "merged"])
def test_only_logits_and_messages_come_to_the_host_in_a_step(comm, cupy, decode, codec):
    gpu, _, inputs, mask = models(comm, "gpt2", CODECS[codec])
    gpu.use("astra", remote="table")
    steps = []

    def sample(logits, sequences, step):
        steps.append((len(sequences), list(cupy.round_trips)))
        cupy.round_trips.clear()
        return logits.argmax(axis=1)

    gpu.generate(inputs, mask, max_new_tokens=4, sample=sample, decode=decode)
    config = gpu.config
    for n, trips in steps[2:]:  # in the first one constants are uploaded
        rows = 4 * n * (config.d_model + 2 * config.n_heads)
        each = [("get", rows), ("wait", 0)] if decode == "merged" and comm.size > 1 else []
        assert trips == each * config.n_layers + [("get", 4 * n * config.vocab_size)]


def test_a_stream_of_generated_tokens(comm, cupy):
    gpu, cpu, inputs, mask = models(comm, "llama", CODECS["residual"])
    streams = []
    for model in (gpu, cpu):
        model.use("astra", remote="table")
        seen = []
        keep = None if comm.rank else lambda step, ids, seen=seen: seen.append((step, ids.tolist()))
        model.generate(inputs, mask, max_new_tokens=4, on_tokens=keep)
        streams.append(seen)
    assert streams[0] == streams[1]
    assert len(streams[0]) == (4 if comm.rank == 0 else 0)


def test_without_cupy(comm, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(InputError, match=r"needs CuPy .* pip install 'astra-mpi\[cuda12\]'"):
        get_backend("cuda", comm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transport": "rdma"}, "transport 'rdma' is unknown"),
        ({"precision": "int8"}, "precision 'int8' is unknown"),
        ({"name": "numpy", "transport": "cuda-aware"}, "is for backend cuda"),
        ({"name": "numpy", "precision": "float16"}, "is for backend cuda"),
    ],
)
def test_settings_that_do_not_fit(comm, cupy, options, message):
    with pytest.raises(InputError, match=message):
        get_backend(**{"name": "cuda", "comm": comm} | options)
