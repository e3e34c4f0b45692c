"""Where generation ends, what it costs, what it refuses, and what happens when a rank fails."""

import tracemalloc

import numpy as np
import pytest

from astra_mpi.caches.codes import CodeSpace, ScoredCodes, TurnedCodes
from astra_mpi.caches.kept import Softmax
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.decode.compiled import CompiledStep
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import AstraError, InputError
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.partition import even
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file
from helpers.turns import by_turns

MODES = pytest.mark.parametrize("decode", ["local", "merged"])


def make_model(comm, config, codec=None, spec="astra", **changes):
    model = Model(model_file(config, codec), comm, get_backend("numpy", comm), **changes)
    model.use(spec)
    return model


def counting(logits, sequences, step):
    """Ids that say which sequence and step they are of."""
    return (np.asarray(sequences) * 10 + step) % logits.shape[1]


# ---- where it ends


@pytest.mark.mpi
@MODES
def test_stop_tokens_and_last_positions(comm, decode):
    config = gpt2_config()  # 40 positions
    model = make_model(comm, config)
    ids, _ = random_batch(config, 4, 36)
    mask = np.arange(36) < np.array([36, 9, 9, 2])[:, None]
    seen = []
    listen = (lambda step, ids: seen.append((step, ids))) if comm.rank == 0 else None
    for on_tokens in (None, listen):
        streams = comm.bcast(on_tokens is not None)
        got = model.generate(
            ids, mask, max_new_tokens=7, sample=counting, stop=[12, 20], decode=decode, on_tokens=on_tokens
        )
        want = [[0, 1, 2, 3, -1, -1, -1], [10, 11, 12, -1, -1, -1, -1], [20] + [-1] * 6, list(range(30, 37))]
        assert got.tolist() == want
        generation = model.report["generation"]
        assert generation["ended"] == ["positions", "stop", "stop", "length"]
        assert generation["new_tokens"] == [4, 3, 1, 7]
        if comm.rank == 0 and streams:
            assert [step for step, _ in seen] == list(range(7))
            assert np.array([ids for _, ids in seen]).T.tolist() == want
    assert all(np.array_equal(got, other) for other in comm.allgather(got))


@pytest.mark.mpi
def test_the_way_of_decoding_is_chosen_before_any_pass(comm):
    codec = CodecConfig(site="normed", stages=2, codebook_size=9, near=2, near_stages=1)
    conditions = parse_conditions(comm.size, network="100Mbps,rtt=1ms", clock="virtual")
    model = make_model(comm, gpt2_config(), codec, conditions=conditions)
    assert model.generate(np.ones((1, 9), int), max_new_tokens=2).shape == (1, 2)
    if comm.size > 1:
        assert model.report["bits_per_token_per_block"] > 8  # near tokens of the prompt


@pytest.mark.mpi
@MODES
def test_holes_keep_positions(comm, decode):
    """A masked token is not there, and a new one comes after the last position of the prompt."""
    config = llama_config()
    model = make_model(comm, config, spec="sp")
    ids, _ = random_batch(config, 1, 9)
    mask = np.array([[0, 1, 1, 0, 1, 1, 1, 0, 0]], bool)
    got = model.generate(ids, mask, max_new_tokens=4, decode=decode)
    text, there = ids.copy(), mask.copy()
    text[0, 7:] = 0
    model.use("single")
    for step in range(4):
        assert model(text, there)[0].argmax() == got[0, step]
        text = np.append(text[:, : 7 + step], got[:, step : step + 1], axis=1)
        there = np.append(there[:, : 7 + step], [[True]], axis=1)


@pytest.mark.mpi
def test_an_empty_batch(comm):
    model = make_model(comm, gpt2_config())
    assert model.generate(np.zeros((0, 3), np.int64), max_new_tokens=5).shape == (0, 5)


# ---- what it costs


@pytest.mark.mpi
@pytest.mark.parametrize("far", ["codes", "keys"])
@pytest.mark.parametrize("codec", ["residual", "kv", "one-code"])
def test_cache_bytes_are_the_formula(comm, codec, far):
    """Own tokens and new ones in full; of a far token its codes and 4 bytes for its sigma, or its key and value; with
    one code, what the distinct ones are and how often."""
    codecs = {
        "residual": (gpt2_config(), CodecConfig(stages=3, codebook_size=16), 3 + 4),
        "kv": (llama_config(), CodecConfig(site="kv", kind="grouped", groups=2, codebook_size=300), 2 * 2 * 2),
        "one-code": (gpt2_config(), CodecConfig(stages=1, codebook_size=9), None),
    }
    config, codec_config, far_bytes = codecs[codec]
    model = make_model(comm, config, codec_config)
    model.use("astra", remote="table")
    ids, _ = random_batch(config, 1, 23)
    row_bytes = 2 * config.d_kv * 4
    model.generate(ids, max_new_tokens=6, decode="local", far=far)
    assert model.report["generation"]["far"] == far
    far_bytes = row_bytes if far == "keys" else far_bytes
    own = int(even(23, comm.size)[-1])
    n_bytes = (23 - own) * (far_bytes or 0) * config.n_layers
    if codec == "kv" and far == "codes":
        n_bytes += (23 - own) * config.d_head * 4  # cosines and sines of a token, the same for all blocks
    if codec == "one-code":
        codes = model.strategy.arrived.codes
        index = model.strategy.planned.far_index
        n_bytes = sum(len(np.unique(block[index])) * (2 + 4) for block in codes) if len(index) else 0
        n_bytes = comm.bcast(n_bytes, root=comm.size - 1)
    cached = model.report["generation"]["cache_bytes"]
    assert cached == [0] * (comm.size - 1) + [config.n_layers * (own + 5) * row_bytes + n_bytes]
    assert model.report["generation"]["full_cache_bytes"] == config.n_layers * (23 + 5) * row_bytes
    model.generate(ids, max_new_tokens=6, decode="merged")
    cached = model.report["generation"]["cache_bytes"]
    assert cached == (config.n_layers * row_bytes * (even(23, comm.size) + even(5, comm.size))).tolist()


@pytest.mark.mpi
def test_a_batch_is_spread_over_the_ranks(comm):
    config = gpt2_config()
    model = make_model(comm, config)
    ids, _ = random_batch(config, 8, 16)
    used = np.zeros(8, int)

    def sample(logits, sequences, step):
        used[sequences] += 1
        return counting(logits, sequences, step)

    model.generate(ids, max_new_tokens=3, sample=sample)
    every = np.array(comm.allgather(used))
    assert (every.sum(axis=0) == 3).all() and ((every > 0).sum(axis=0) == 1).all()
    assert (every.any(axis=1)).sum() == comm.size  # as many sequences as ranks, or more
    assert all(n > 0 for n in model.report["generation"]["cache_bytes"])
    assert model.report["generation"]["decode_bytes"] == [0] * comm.size


@pytest.mark.mpi
@MODES
@pytest.mark.parametrize("streams", [False, True])
def test_bytes_that_decoding_sends(comm, decode, streams):
    """Alone: 4 bytes per sequence and token, told at every step or in the end. Merged: a partial softmax per block."""
    config = gpt2_config()
    model = make_model(comm, config)
    ids, mask = random_batch(config, 3, 17, ragged=True)
    model(ids, mask, spread=True)
    prefill = model.report
    on_tokens = (lambda step, ids: None) if streams and comm.rank == 0 else None
    model.generate(ids, mask, max_new_tokens=5, decode=decode, sample=counting, on_tokens=on_tokens)
    report, generation = model.report, model.report["generation"]
    n_messages = 5 if streams or decode == "merged" else 1
    merged = 3 * (config.d_model + 2 * config.n_heads) * 4 * config.n_layers * 4
    if comm.size == 1:
        n_messages = merged = 0
    assert generation["decode_bytes"] == [merged if decode == "merged" else 0] * comm.size
    owner = np.zeros(3, int) if decode == "merged" else model.strategy.planned.last_rank
    told = [n_messages + 4 * 5 * int((owner == rank).sum()) * (comm.size > 1) for rank in range(comm.size)]
    assert generation["id_bytes"] == told
    shared = 3 * config.d_model * 4 * comm.size if comm.size > 1 else 0  # last rows, in a call and when merged
    assert prefill["other_bytes"] == shared
    assert report["other_bytes"] == (shared if decode == "merged" else 0) + sum(told)
    for name in ("contributed_bytes", "formula_bytes", "port_bytes"):
        assert report[name] == prefill[name]
    assert set(report) == set(prefill) | {"generation"}


@pytest.mark.mpi
@pytest.mark.parametrize("accounting", ["port", "contributed"])
def test_an_emulated_network_charges_the_merges(comm, accounting):
    conditions = parse_conditions(comm.size, network="1Mbps,rtt=2ms", accounting=accounting, clock="virtual")
    config = gpt2_config()
    model = make_model(comm, config, spec="sp", conditions=conditions)
    ids, _ = random_batch(config, 1, 17)
    per_token_s = {}
    for decode in ("local", "merged"):
        model.generate(ids, max_new_tokens=4, decode=decode)
        per_token_s[decode] = model.report["generation"]["per_token_s"]["median"]
        assert model.report["generation"]["first_token_s"] >= model.report["latency_s"]["total"] > 0
    if comm.size > 1:
        copies = comm.size - 1 if accounting == "port" else 1
        merge_s = copies * (config.d_model + 2 * config.n_heads) * 4 * 8 / 1e6 + 1e-3
        assert per_token_s["merged"] >= config.n_layers * merge_s
        assert per_token_s["local"] < config.n_layers * 1e-3  # no latency of the network


@pytest.mark.mpi
def test_lost_messages_of_the_prefill_are_not_seen_later(comm):
    conditions = parse_conditions(comm.size, network="1000Mbps,loss=40%", clock="virtual", seed=3)
    config = gpt2_config()
    model = make_model(comm, config, conditions=conditions)
    ids, mask = random_batch(config, 3, 17, ragged=True)
    got = model.generate(ids, mask, max_new_tokens=4)
    assert np.array_equal(got, model.generate(ids, mask, max_new_tokens=4))
    if comm.size > 2:
        assert model.report["missing"]["lost"] > 0


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("family", "codec", "spec"),
    [
        ("gpt2", CodecConfig(stages=1, codebook_size=9), "astra"),
        ("gpt2", CodecConfig(stages=3, codebook_size=16), "astra"),
        ("gpt2", None, "sp"),
        ("llama", CodecConfig(site="kv", stages=2, codebook_size=8), "astra"),
        ("llama", None, "single"),
    ],
)
def test_no_array_grows_with_the_square_of_the_prompt(comm, family, codec, spec):
    """Twice the tokens take at most a little more than twice the memory; scores of all pairs would take four times."""
    config = {"gpt2": gpt2_config, "llama": llama_config}[family](max_positions=4096)
    model = make_model(comm, config, codec, spec)
    peaks = []
    for n_tokens in (2000, 4000):
        ids, _ = random_batch(config, 1, n_tokens)
        tracemalloc.start()  # NumPy tells it of its arrays
        model.generate(ids, max_new_tokens=3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2.4 * peaks[0]


# ---- what it refuses


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(ids=np.zeros((1, 0), int)), "prompt 0 is empty"),
        (dict(mask=np.array([[1, 1, 1], [0, 0, 0]])), "prompt 1 is empty"),
        (dict(ids=np.zeros((1, 41), int), mask=None), "position 41, but this model has 40"),
        (dict(ids=np.zeros((1, 40), int), mask=None), "prompt 0 fills all 40 positions"),
        (dict(ids=np.full((1, 3), 53), mask=None), r"token id 53 .* outside 0\.\.52"),
        (dict(max_new_tokens=0), "max_new_tokens = 0"),
        (dict(max_new_tokens=2.5), "max_new_tokens = 2.5"),
        (dict(stop=[53]), r"stop token 53 is outside the vocabulary, 0\.\.52"),
        (dict(decode="alone"), "decode = 'alone' is unknown; use one of auto, local, merged"),
    ],
)
def test_bad_input_is_one_sentence_on_all_ranks(comm, change, message):
    model = make_model(comm, gpt2_config())
    arguments = dict(ids=np.ones((2, 3), int), mask=np.ones((2, 3)), max_new_tokens=2) | change
    if len(arguments["ids"]) == 1:
        arguments["mask"] = None
    with pytest.raises(InputError, match=message) as caught:
        model.generate(**arguments)
    assert caught.value.collective
    assert model.generate(np.ones((1, 3), int), max_new_tokens=2).shape == (1, 2)  # nothing is left over


@pytest.mark.mpi
def test_ranks_must_ask_for_the_same(comm):
    model = make_model(comm, gpt2_config())
    if comm.size == 1:
        return
    with pytest.raises(InputError, match="differ between ranks"):
        model.generate(np.ones((1, 3), int), max_new_tokens=2 + comm.rank)


@pytest.mark.mpi
def test_models_and_strategies_that_generate_nothing(comm):
    with pytest.raises(InputError, match="bert model generates no tokens; give a decoder, such as Llama"):
        make_model(comm, bert_config(), spec="sp").generate(np.ones((1, 3), int), max_new_tokens=2)
    for spec in ("tp", "bp"):
        config = gpt2_config(d_model=32, n_heads=8, n_kv_heads=8)
        model = Model(model_file(config), comm, get_backend("numpy", comm))
        if model.obstacle(spec) is None:
            model.use(spec)
            with pytest.raises(InputError, match=f"strategy {spec} does not generate.*use single, sp"):
                model.generate(np.ones((1, 3), int), max_new_tokens=2)


# ---- when a rank fails


@pytest.mark.mpi
@by_turns(
    ("decode", "streams", "where", "bad_rank"),
    ["local", "merged"],
    [False, True],
    ["first sample", "sample", "bad sample", "block", "callback", "last callback"],
    [0, -1],
)
def test_one_rank_failing_fails_all_alike(comm, monkeypatch, decode, streams, where, bad_rank):
    config = llama_config()
    model = make_model(comm, config, CodecConfig(site="kv", stages=2, codebook_size=8))
    ids, mask = random_batch(config, 5, 9, ragged=True)
    bad = comm.rank == bad_rank % comm.size
    heard = [3] if where == "last callback" else [1]
    # decoding runs its blocks in one call, or in one more than there are exchanges
    n_runs = config.n_layers + 1 if decode == "merged" and comm.size > 1 else 1
    run, calls = CompiledStep.run, []

    def sample(logits, sequences, step):
        if bad and (where, step) in (("first sample", 0), ("sample", 2)):
            raise AstraError("no sample")
        if bad and (where, step) == ("bad sample", 1):
            return np.full(len(sequences), 53)
        return counting(logits, sequences, step)

    def failing(*arrays):
        calls.append(1)
        if len(calls) == n_runs + min(2, n_runs):  # in the second step
            raise AstraError("no block")
        return run(*arrays)

    def listen(step, ids):
        if where.endswith("callback") and step in heard:
            raise AstraError("no callback")

    model.generate(ids, mask, max_new_tokens=1)
    works = decode == "merged" or bad_rank % comm.size in model.strategy.planned.last_rank
    samples = bad_rank % comm.size == 0 if decode == "merged" else works
    arguments = dict(max_new_tokens=4, decode=decode, sample=sample)
    arguments["on_tokens"] = listen if streams and comm.rank == 0 else None
    if where == "block" and bad:
        monkeypatch.setattr(CompiledStep, "run", failing)
    fails = works if where == "block" else samples if "sample" in where else streams
    if fails:
        with pytest.raises(AstraError, match=r"no (sample|block|callback)|sample gave") as caught:
            model.generate(ids, mask, **arguments)
        assert caught.value.collective
    else:
        model.generate(ids, mask, **arguments)
    monkeypatch.setattr(CompiledStep, "run", run)
    got = model.generate(ids, mask, max_new_tokens=4, decode=decode, sample=counting)
    assert (got == (np.arange(5)[:, None] * 10 + np.arange(4)) % 53).all()


# ---- code space


@pytest.mark.parametrize("backend", ["numpy", "reference"])
@pytest.mark.parametrize("remote", ["table", "gemm"])
@pytest.mark.parametrize(
    "codec",
    [
        CodecConfig(stages=3, codebook_size=16),
        CodecConfig(kind="grouped", groups=5, codebook_size=300),
        CodecConfig(stages=1, codebook_size=9),
        CodecConfig(site="normed", stages=2, codebook_size=16),
        CodecConfig(site="kv", kind="grouped", groups=5, codebook_size=16),
    ],
    ids=["residual", "grouped", "one-code", "normed", "kv"],
)
def test_scores_in_code_space_are_those_of_rebuilt_keys(comm, codec, remote, backend):
    """Also where all activations have an offset in common, which the LayerNorm takes away."""
    config = gpt2_config(d_model=30, n_heads=3, n_kv_heads=3)
    file = model_file(config, codec)
    if codec.site == "hidden":
        for book in file.codec.blocks[0].codebooks:
            book.entries[0] += 20  # of the first stage, or of one group
            if codec.kind == "grouped":
                book.entries[1:] += 20
    model = Model(file, comm, get_backend(backend, comm))
    model.use("astra", remote=remote)
    rng, kernels, block = np.random.default_rng(0), model.backend.kernels, model.blocks[0]
    codes = rng.integers(0, codec.codebook_size, (29, codec.codes_per_token)).astype(np.uint16)
    q = rng.normal(0, 1, (3, 1, 10)).astype(np.float32)
    table = model.strategy.remote.tables[0]
    rows = np.zeros((2, Softmax.width(config)), np.float32)
    ways = [
        ScoredCodes(CodeSpace(block, file.codec.blocks[0], codec.site, table), codes, kernels),
        TurnedCodes(table, codes, np.tile(np.float32([1] * 5 + [0] * 5), (29, 1))),  # turned by nothing
    ]
    for row, way in zip(rows, ways, strict=True):
        softmax = Softmax(row, config)
        softmax.clear()
        way.attend(q, softmax, kernels)
        softmax.acc /= softmax.row_sum[:, :, None]
    np.testing.assert_allclose(rows[0], rows[1], rtol=2e-4, atol=2e-4 * np.abs(rows[1]).max())
