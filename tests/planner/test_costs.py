"""The cost model against counts and bytes worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import ModelConfig
from astra_mpi.costs.decode import decode_cost
from astra_mpi.costs.latency import assumed_speeds
from astra_mpi.costs.mapped import coded_wires, mapped_wires, mean_wire
from astra_mpi.costs.strategies import STRATEGIES, astra, single
from astra_mpi.costs.wires import Coding, astra_wire, encode_madds
from astra_mpi.costs.work import Job, shape_of
from astra_mpi.layout import Layout
from astra_mpi.partition import even
from astra_mpi.strategies.reach import whole_reach, window_reach
from helpers.fakes import gpt2_config, llama_config

D, L, T = 768, 12, 1024
VIT_BASE = ModelConfig(D, 12, 12, L, 4 * D, "gelu", 1e-12)
G1_1024 = CodecConfig(kind="grouped", groups=1, codebook_size=1024)
G1_256 = CodecConfig(kind="grouped", groups=1, codebook_size=256)
M8_256 = CodecConfig(stages=8)
FREE = CodecConfig(kind="grouped", groups=1, codebook_size=1)


def job(size, tokens=T, config=VIT_BASE, batch=1):
    return Job(shape_of(config), tuple(map(int, even(tokens, size))), batch)


def speedup(size, coding, tokens=T):
    """Multiply-adds on one rank over those of the busiest of `size`."""
    alone = single(job(size, tokens)).work()[0].multiply_adds
    return alone / max(work.multiply_adds for work in astra(job(size, tokens), coding).work())


def test_a_block_is_12_T_D2_plus_2_T2_D():
    assert single(job(1)).work()[0].multiply_adds == L * (12 * T * D**2 + 2 * T**2 * D)
    assert [work.multiply_adds for work in single(job(3)).work()[1:]] == [0, 0]


@pytest.mark.parametrize(
    "size, coding, limit",
    [
        (2, Coding(G1_1024), 1.83),
        (2, Coding(G1_256), 1.96),
        (4, Coding(G1_1024), 3.67),
        (4, Coding(G1_256), 3.91),
        (4, Coding(M8_256), 3.38),
        (4, Coding(G1_1024, subspaces=(128,)), 3.90),
        (4, Coding(G1_256, distinct=256), 4.29),
    ],
)
def test_what_limits_the_speedup(size, coding, limit):
    assert speedup(size, coding) == pytest.approx(limit, abs=0.005)


def test_predictions_have_a_speed_of_their_own():
    speeds = assumed_speeds(100.0)
    own = replace(speeds, states=1e9)
    work = astra(job(4), Coding(replace(M8_256, site="normed", predict="linear"))).work()[1]
    assert work.states == T * (L - 1) * D * D
    assert own.seconds(work) - own.seconds(work._replace(states=0)) == pytest.approx(work.states / 1e9)
    assert own.times(2).states == 2e9 and replace(own, states=None).times(2).states is None
    as_search = replace(own, states=None).seconds(work._replace(states=0, encode=work.encode + work.states))
    assert replace(own, states=None).seconds(work) == pytest.approx(as_search)


def test_an_average_block_of_a_codec_whose_blocks_differ():
    """What a causal cut counts: of four blocks the first needs no codes, and the others have 2, 8 and no stages. In the
    last, states are made only if maps are of low rank; if not, one matrix gives keys and values."""
    config = llama_config(n_layers=4)
    codec = CodecConfig(site="normed", stages=(0, 2, 8, 0), codebook_size=16, predict="linear")
    coding, shape = Coding(codec), shape_of(config)
    wire, d = mean_wire(coded_wires(shape, coding)), config.d_model
    assert wire.encode.encode == pytest.approx((2 + 8 + 0) * 16 * d / 3)
    assert wire.expect_own.states == wire.expect_far.states == pytest.approx(2 * d * d / 3)
    assert coded_wires(shape, coding)[-1].decode.gemm == shape.project_kv
    low = mean_wire(coded_wires(shape, replace(coding, rank=4)))
    assert low.expect_own.states == low.expect_far.states == pytest.approx(2 * d * 4)


def test_late_codes_move_states_once():
    """In the block after their own, whether that has codes or not."""
    config = llama_config(n_layers=6)
    codec = CodecConfig(site="normed", stages=(0, 2, 0, 0, 3, 0), codebook_size=16, predict="linear")
    wires, d = mapped_wires(shape_of(config), Coding(codec), late=True), config.d_model
    assert [wire.expect_far.table + wire.decode.table for wire in wires] == pytest.approx([0, 2 * d, 0, 0, 3 * d])


def test_a_first_block_from_the_inputs():
    """It is not encoded, projects far keys and values again, and sends nothing."""
    coded, given = (STRATEGIES[name](job(4), Coding(G1_256)) for name in ("astra", "astra:inputs"))
    n, far = T / 4, T * 3 / 4
    for a, b in zip(coded.work(), given.work(), strict=True):
        assert b.multiply_adds - a.multiply_adds == far * 2 * D * D - n * D * 256
    assert [L * n for n in given.contributed_bytes()] == [(L - 1) * n for n in coded.contributed_bytes()]
    patches = replace(job(4).shape, embed=5)
    embedded = STRATEGIES["astra:inputs"](replace(job(4), shape=patches), Coding(G1_256))
    assert embedded.work()[0].multiply_adds == given.work()[0].multiply_adds + far * 5


def test_each_block_is_searched_in_its_own_width():
    shape, codec = job(4).shape, CodecConfig("normed", stages=(0, 2, 64, *[1] * (L - 3)), predict="linear")
    widths = 16, 512, *[32] * (L - 3)
    for searched, expected in ((widths, widths[:2]), ((128,), (128, 128))):
        found = [astra_wire(shape, Coding(codec, searched), i).encode.encode for i in (1, 2)]
        assert found == [d * (D + n * 256) for d, n in zip(expected, (2, 64), strict=True)]
    mean = mean_wire(coded_wires(shape, Coding(codec, widths))).encode.encode
    every = [d * (D + n * 256) for d, n in zip(widths, codec.stages[1:], strict=True)]
    assert mean == pytest.approx(sum(every) / (L - 1))


def test_codes_of_what_a_prediction_misses():
    """While codes travel, states of all tokens are predicted and those of far ones projected; block 0 sends nothing."""
    coding = Coding(CodecConfig("normed", stages=8, predict="linear"), subspaces=(128,), rank=64)
    n, far = T // 4, T * 3 // 4
    block = 12 * n * D**2 + 2 * T * n * D + far * 2 * D * D
    coded = n * 128 * (D + 8 * 256) + T * 2 * D * 64
    for name in ("astra", "astra:inputs"):
        cost = STRATEGIES[name](job(4), coding)
        assert [work.multiply_adds for work in cost.work()] == [L * block + (L - 1) * coded] * 4
        assert cost.contributed_bytes() == [(L - 1) * n * 8] * 4
    first, others = astra(job(4), coding).stages
    assert (first.repeats, others.repeats, first.transfer) == (1, L - 1, None)
    assert others.ranks[0].after.gemm == n * 9 * D * D  # output projection and MLP alone
    rebuilt = astra(job(4), replace(coding, remote="gemm")).stages[1].ranks[0]
    assert rebuilt.after.gemm == n * 9 * D * D + far * 2 * D * D
    whole = astra(job(4), replace(coding, rank=None)).work()[0].multiply_adds
    assert whole - astra(job(4), coding).work()[0].multiply_adds == (L - 1) * T * (D * D - 2 * D * 64)
    assert astra(job(4), coding).table_bytes > 4 * (L - 1) * 2 * D * 64 + 8 * T * D
    for rank, more in ((64, 3 * D * 64), (None, 3 * D * D)):  # three inputs
        known = [replace(coding, codec=replace(coding.codec, inputs=n), rank=rank) for n in (0, 3)]
        without, given = (astra(job(4), c).work()[0].multiply_adds for c in known)
        assert given - without == (L - 1) * T * more


def test_limits_with_a_free_encoder():
    """K = 1 leaves n_r D multiply-adds of search, which is 0.01 percent."""
    assert speedup(4, Coding(FREE)) == pytest.approx(4, abs=0.002)
    assert speedup(4, Coding(FREE, remote="gemm")) == pytest.approx(2.84, abs=0.005)


def test_encoder():
    assert encode_madds(CodecConfig(kind="grouped", groups=16, codebook_size=1024), D) == D * 1024
    assert encode_madds(M8_256, D) == D * 256 * 8
    assert encode_madds(G1_1024, D, (128,)) == 128 * D + 128 * 1024
    assert encode_madds(M8_256, D, (128, None)) == (128 * (D + 256 * 8) + D * 256 * 8) / 2
    exact, subspace = (encode_madds(G1_1024, D, (d,)) for d in (None, 128))
    assert exact / subspace == pytest.approx(3.4, abs=0.05)


def test_rivals_of_four_ranks():
    """tp: a quarter of a block each. bp: 11 decoupled blocks, 4 (D/4)^2 + 8 D^2 / 4 per token, and a whole one."""
    whole = 12 * T * D**2 + 2 * T**2 * D
    assert [w.multiply_adds for w in STRATEGIES["tp"](job(4), Coding()).work()] == [L * whole / 4] * 4
    decoupled = T * (4 * (D // 4) ** 2 + 8 * D**2 // 4) + 2 * T**2 * (D // 4)
    assert [w.multiply_adds for w in STRATEGIES["bp"](job(4), Coding()).work()] == [11 * decoupled + whole] * 4
    shared = 2 * T * D**2 + 10 * T // 4 * D**2 + 2 * T * (T // 4) * D  # keys and values of all tokens, the rest of own
    assert [w.multiply_adds for w in STRATEGIES["bp:sp"](job(4), Coding()).work()] == [11 * decoupled + shared] * 4


def test_sequence_parallel_recomputes_far_keys_unless_they_travel():
    quarter = 12 * T // 4 * D**2 + 2 * T * T // 4 * D
    far = T * 3 // 4
    for strategy, extra in (("sp", far), ("sp:int8", far), ("sp:kv", 0), ("segment_means:8", far / 8)):
        attention = quarter - 2 * (far - extra) * T // 4 * D if strategy == "segment_means:8" else quarter
        work = STRATEGIES[strategy](job(4), Coding()).work()[0]
        assert work.multiply_adds == L * (attention + 2 * extra * D**2), strategy


@pytest.mark.parametrize("tokens, sinks", [(1024, 1), (9, 8), (3, 2)])
@pytest.mark.parametrize("window", [0, 5])
def test_sinks_are_replicated_and_not_sent(tokens, sinks, window):
    """Bytes and far tokens are those of the ranks' layouts and reaches; a replica costs a rank a row, not a code."""
    config = llama_config(windows=(window,) * 2 if window else ())
    codec = CodecConfig(site="kv", stages=2, sinks=sinks)
    work, plain = job(4, tokens, config), job(4, tokens, config)
    layouts = [Layout(np.array([work.counts]), rank, causal=True, replicas=4, sinks=sinks) for rank in range(4)]
    reaches = [window_reach(one, np.arange(tokens), window) if window else whole_reach(one) for one in layouts]
    cost, without = astra(work, Coding(codec)), astra(plain, Coding(replace(codec, sinks=0)))
    sent = [2 * -(-int(n) * codec.bits_per_token // 8) for n in reaches[0].token_counts]
    assert cost.contributed_bytes() == sent
    wire = astra_wire(work.shape, Coding(codec))
    for rank, (reach, one, other) in enumerate(zip(reaches, cost.work(), without.work(), strict=True)):
        rows = int(layouts[rank].row_offsets[-1])
        assert one.table == 2 * wire.decode.table * len(reach.far_index)
        linear = 2 * work.shape.project_q + work.shape.project_kv + work.shape.mlp
        assert one.gemm - other.gemm == 2 * linear * (rows - work.counts[rank])
        assert one.encode == 2 * wire.encode.encode * (work.counts[rank] - work.own_sinks(sinks, rank)) or window


def test_decoding_keeps_sinks_as_they_are():
    """The rank with the last token has replicas in place of far tokens; ranks that merge have none."""
    coding, plain = (Coding(CodecConfig(stages=1, sinks=sinks)) for sinks in (3, 0))
    work = job(4, 64, gpt2_config())
    row = 2 * gpt2_config().d_kv * 4 * 2  # of both blocks
    alone, before = (decode_cost(work, one, "astra", "local", 2).cache_bytes[3] for one in (coding, plain))
    assert alone - before == 3 * (row - 2 * 6)  # a code and its count
    merged = [decode_cost(work, one, "astra", "merged", 2).cache_bytes for one in (coding, plain)]
    assert merged[0] == merged[1]
    assert decode_cost(work, coding, "sp:kv", "local", 2) == decode_cost(work, plain, "sp:kv", "local", 2)
