"""Both CPU backends against independent truth: float64 NumPy written here, PyTorch, faiss."""

import math

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

from astra_mpi.kernels import cpu, reference
from astra_mpi.kernels.cpu import _attention, _codes, _encode, _rows, _team, _weights, bfloat16
from astra_mpi.kernels.cpu._math import erf, exp
from astra_mpi.kernels.cpu.dense import tile as dense_tiles
from astra_mpi.kernels.near import Near

BACKENDS = pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
SIZES = pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 33])
EPS = np.finfo(np.float32).eps


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def half_norms(entries):
    return ((entries.astype(np.float64) ** 2).sum(axis=-1) / 2).astype(np.float32)


def close(actual, expected, terms=1):
    """Equal to float32 rounding of `terms` added terms, relative to the largest expected value."""
    assert actual.shape == expected.shape
    if actual.size == 0:
        return
    error = np.abs(actual - expected)
    bound = 4 * EPS * math.sqrt(terms) * max(1.0, np.abs(expected).max())
    assert error.max() <= bound, f"largest difference {error.max():.2e}, mean {error.mean():.2e}, bound {bound:.2e}"


def assert_nearest(x, entries, codes, rival=None):
    """Each code's squared distance is the least, or within rounding of it; where a rival differs, it is a near tie."""
    x, entries = x.astype(np.float64), entries.astype(np.float64)
    for row, code in enumerate(codes):
        distances = ((entries - x[row]) ** 2).sum(axis=1)
        slack = 64 * EPS * (x[row] @ x[row] + distances.min())
        assert distances[code] <= distances.min() + slack
        if rival is not None:
            assert distances[rival[row]] <= distances[code] + slack


@BACKENDS
@pytest.mark.parametrize(("m", "k", "n"), [(0, 5, 3), (1, 17, 70), (33, 0, 9), (9, 40, 64), (57, 1030, 45), (23, 7, 1)])
def test_dense(kernels, m, k, n):
    """Right with all that may follow, between other columns; in tiles a row has the same bits in any company."""
    x, weight, bias = normal(m, k), normal(k, n + 5, seed=1)[:, 3 : n + 3], normal(n, seed=2)
    exact, room = x.astype(np.float64) @ weight, np.full((m, n + 40), 7, np.float32)
    out, gelu = room[:, 8 : n + 8], np.vectorize(lambda y: 0.5 * y * (1 + math.erf(y / math.sqrt(2))), otypes=[float])
    close(kernels.dense(x, weight, out, bias), exact + bias, k + 1)
    close(kernels.dense(x, weight, out, bias, "gelu"), gelu(exact + bias), k + 1)
    close(kernels.dense(x, weight, out, None, "relu", add=True), gelu(exact + bias) + np.maximum(exact, 0), k + 1)
    before = out.copy()
    close(kernels.dense(x, weight, out, bias, add=True), before + exact + bias, k + 1)
    whole = kernels.dense(x, weight, out)
    assert (np.delete(room, np.s_[8 : n + 8], axis=1) == 7).all()
    for rows in (slice(0, 9), slice(3, 21)) if kernels is cpu and dense_tiles.HAS_TILES and m > 21 else ():
        alone = kernels.dense(x[rows], weight, np.empty((rows.stop - rows.start, n), np.float32))
        assert np.array_equal(alone, whole[rows])


# ---- codes


@BACKENDS
@SIZES
@pytest.mark.parametrize(("groups", "n_codes", "width"), [(1, 33, 24), (3, 16, 8), (4, 256, 5), (2, 300, 7), (3, 1, 4)])
def test_encode_grouped(kernels, n, groups, n_codes, width):
    x, entries = normal(n, groups * width), normal(groups, n_codes, width)
    codes = kernels.encode_grouped(x, entries, half_norms(entries))
    assert codes.shape == (n, groups)
    assert codes.dtype == (np.uint8 if n_codes <= 256 else np.uint16)
    for g in range(groups):
        part = np.ascontiguousarray(x[:, g * width : (g + 1) * width])
        rival = faiss.knn(part, entries[g], 1)[1][:, 0] if n else []
        assert_nearest(part, entries[g], codes[:, g], rival)


@BACKENDS
@pytest.mark.parametrize(("groups", "bits", "width"), [(1, 8, 48), (4, 8, 12), (8, 4, 6)])
def test_encode_grouped_is_faiss_product_quantizer(kernels, groups, bits, width):
    x, entries = normal(65, groups * width), normal(groups, 1 << bits, width)
    quantizer = faiss.ProductQuantizer(groups * width, groups, bits)
    faiss.copy_array_to_vector(entries.ravel(), quantizer.centroids)
    rival = kernels.unpack(quantizer.compute_codes(x).ravel(), 65, groups, bits)  # faiss packs 4 bits as we do
    codes = kernels.encode_grouped(x, entries, half_norms(entries))
    for g in range(groups):
        assert_nearest(x[:, g * width : (g + 1) * width], entries[g], codes[:, g], rival[:, g])
    assert np.mean(codes == rival) > 0.99
    close(
        kernels.decode_grouped(codes, entries)[codes[:, 0] == rival[:, 0], :width],
        quantizer.decode(quantizer.compute_codes(x))[codes[:, 0] == rival[:, 0], :width],
    )


@BACKENDS
@SIZES
@pytest.mark.parametrize(("stages", "n_codes"), [(1, 16), (4, 32), (3, 300)])
def test_encode_residual_is_greedy(kernels, n, stages, n_codes):
    x, entries = normal(n, 24), normal(stages, n_codes, 24)
    codes = kernels.encode_residual(x, entries, half_norms(entries))
    assert codes.shape == (n, stages)
    residual = x.astype(np.float64)
    for m in range(stages):
        assert_nearest(residual, entries[m], codes[:, m], faiss_nearest(residual, entries[m]))
        residual = residual - entries[m, codes[:, m]]
    close(kernels.decode_residual(codes, entries), x - residual, stages)


def faiss_nearest(x, entries):
    return faiss.knn(x.astype(np.float32), entries, 1)[1][:, 0] if len(x) else []


@pytest.mark.parametrize("encode", ["encode_grouped", "encode_residual"])
@BACKENDS
def test_encode_leaves_its_input_and_takes_row_strides(kernels, encode):
    wide, entries = normal(9, 40), normal(1, 16, 24)
    before = wide.copy()
    codes = getattr(kernels, encode)(wide[:, 8:32], entries, half_norms(entries))
    assert np.array_equal(wide, before)
    assert np.array_equal(codes, getattr(kernels, encode)(wide[:, 8:32].copy(), entries, half_norms(entries)))


@pytest.mark.parametrize("encode", ["encode_grouped", "encode_residual"])
@pytest.mark.parametrize("n_codes", [7, 64, 301])
@BACKENDS
def test_equal_entries_give_the_lowest_index(kernels, encode, n_codes):
    distinct = normal(1, (n_codes + 1) // 2, 33)
    entries = np.ascontiguousarray(np.concatenate([distinct, distinct], axis=1)[:, :n_codes])
    x = distinct[0, np.arange(50) % (n_codes // 2)] + 0.1 * normal(50, 33)
    for n in (1, 2, 3, 50):
        codes = getattr(kernels, encode)(x[:n], entries, half_norms(entries))
        assert codes.max() < distinct.shape[1]
    equal = np.ones((1, n_codes, 33), np.float32)
    assert not getattr(kernels, encode)(x, equal, half_norms(equal)).any()


def test_codes_do_not_depend_on_how_many_tokens_are_encoded_together():
    x, entries = normal(300, 24), normal(1, 512, 24)
    x[::2] = (entries[0, :150] + entries[0, 150:300]) / 2  # near ties, decided by the last bits
    together = cpu.encode_grouped(x, entries, half_norms(entries))
    alone = [cpu.encode_grouped(x[i : i + 1], entries, half_norms(entries))[0] for i in range(300)]
    assert np.array_equal(together, alone)
    assert np.array_equal(together, reference.encode_grouped(x, entries, half_norms(entries)))


def test_nan_input_gives_a_valid_code():
    x, entries = np.full((3, 8), np.nan, np.float32), normal(2, 5, 4)
    assert cpu.encode_grouped(x, entries, half_norms(entries)).max() < 5


@BACKENDS
def test_largest_codebook(kernels):
    entries = np.arange(65536, dtype=np.float32).reshape(1, -1, 1)
    x = np.array([[0.2], [40000.4], [65535.0]], np.float32)
    assert kernels.encode_grouped(x, entries, half_norms(entries))[:, 0].tolist() == [0, 40000, 65535]


@BACKENDS
@SIZES
def test_decode_grouped(kernels, n):
    entries = normal(3, 300, 5)
    codes = np.random.default_rng(n).integers(0, 300, (n, 3)).astype(np.uint16)
    expected = [np.concatenate([entries[g, code[g]] for g in range(3)]) for code in codes]
    assert np.array_equal(kernels.decode_grouped(codes, entries), np.array(expected, np.float32).reshape(n, 15))


@BACKENDS
@SIZES
@pytest.mark.parametrize("per_token", [1, 2, 5, 8])
@pytest.mark.parametrize(("scaled", "biased"), [(False, False), (True, False), (False, True), (True, True)])
def test_table_sum(kernels, n, per_token, scaled, biased):
    tables, rng = normal(per_token, 16, 37), np.random.default_rng(n)
    codes = rng.integers(0, 16, (n, per_token)).astype(np.uint8)
    scale, bias = normal(n, seed=1) if scaled else None, normal(37, seed=2) if biased else None
    expected = sum(tables[c].astype(np.float64)[codes[:, c]] for c in range(per_token))
    expected = expected * (1 if scale is None else scale[:, None]) + (0 if bias is None else bias)
    close(kernels.table_sum(codes, tables, scale, bias), expected, per_token)


@BACKENDS
@SIZES
@pytest.mark.parametrize("stages", [1, 2, 5])
def test_gram_sum_is_the_squared_norm(kernels, n, stages):
    entries = normal(stages, 9, 20).astype(np.float64)
    gram = np.ascontiguousarray(np.einsum("ikw,jlw->ijkl", entries, entries), np.float32)
    codes = np.random.default_rng(n).integers(0, 9, (n, stages)).astype(np.uint8)
    vectors = entries[np.arange(stages), codes].sum(axis=1)
    norms = kernels.gram_sum(codes, gram)
    assert norms.dtype == np.float64
    close(norms, (vectors**2).sum(axis=1), stages)


@BACKENDS
@SIZES
def test_count_codes(kernels, n):
    codes = np.random.default_rng(n).integers(0, 5, (n, 1)).astype(np.uint8)
    counts = kernels.count_codes(codes, 7)
    assert counts.dtype == np.int64
    assert counts.tolist() == [int((codes == k).sum()) for k in range(7)]


@BACKENDS
@SIZES
def test_code_sums_and_add_entries(kernels, n):
    x, codes = normal(n, 5), np.random.default_rng(n).integers(0, 3, n).astype(np.uint8)
    sums = kernels.code_sums(x, codes, 4)
    expected = np.zeros((4, 5), np.float32)
    for row, code in zip(x, codes, strict=True):
        expected[code] += row
    np.testing.assert_array_equal(sums, expected)  # in order, so the same bits
    moved = x.copy()
    assert kernels.add_entries(moved, sums, codes) is moved
    np.testing.assert_array_equal(moved, x + sums[codes])


# ---- norms and activations


@BACKENDS
@SIZES
@pytest.mark.parametrize("offset", [0, 100])
def test_layer_norm(kernels, n, offset):
    x, weight, bias = normal(n, 65) + np.float32(offset), normal(65, seed=1), normal(65, seed=2)
    x64, weight64, bias64 = (torch.from_numpy(z).double() for z in (x, weight, bias))
    expected = torch.nn.functional.layer_norm(x64, (65,), weight64, bias64, 1e-6)
    close(kernels.layer_norm(x, weight, bias, 1e-6), expected.numpy(), 1 + offset**2)


@BACKENDS
@SIZES
def test_rms_norm(kernels, n):
    x, weight = normal(n, 65), normal(65, seed=1)
    expected = torch.nn.functional.rms_norm(
        torch.from_numpy(x).double(), (65,), torch.from_numpy(weight).double(), 1e-6
    )
    close(kernels.rms_norm(x, weight, 1e-6), expected.numpy())


@BACKENDS
def test_norms_take_row_strides_and_fill_out(kernels):
    wide, weight, bias = normal(9, 70), normal(33, seed=1), normal(33, seed=2)
    for norm, arguments in ((kernels.layer_norm, (weight, bias, 1e-6)), (kernels.rms_norm, (weight, 1e-6))):
        out = np.empty((9, 33), np.float32)
        assert norm(wide[:, 5:38], *arguments, out=out) is out
        assert np.array_equal(out, norm(wide[:, 5:38].copy(), *arguments))


@BACKENDS
@SIZES
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("in_y", [True, False])
def test_residual_sums(kernels, n, biased, in_y):
    x, y = normal(n, 65), normal(n, 65, seed=1)
    bias, weight, norm_bias = (normal(65, seed=seed) for seed in (2, 3, 4))
    total = x.astype(np.float64) + y + (bias if biased else 0)
    alone = x.copy()
    assert kernels.add_residual(alone, y, bias if biased else None) is alone
    close(alone, total)
    tensors = [torch.from_numpy(a).double() for a in (total, weight, norm_bias)]
    expected = torch.nn.functional.layer_norm(tensors[0], (65,), tensors[1], tensors[2], 1e-6)
    out = y if in_y else np.empty_like(x)
    assert kernels.add_layer_norm(x, y, bias if biased else None, weight, norm_bias, 1e-6, out) is out
    close(x, total)
    close(out, expected.numpy(), 4)


@BACKENDS
@SIZES
def test_scaled_columns(kernels, n):
    """Also rows that lie apart."""
    wide, scale, bias = normal(n, 70), normal(65, seed=1), normal(65, seed=2)
    x, expected = wide[:, 2:67], wide[:, 2:67].astype(np.float64) * scale + bias
    outside = wide[:, [0, 1, 67, 68, 69]]
    assert kernels.scale_add(x, scale, bias) is x
    close(x, expected)
    assert (wide[:, [0, 1, 67, 68, 69]] == outside).all()


def test_rows_of_other_types_are_refused():
    with pytest.raises(TypeError, match="rows of float32 are needed"):
        cpu.scale_add(np.ones((2, 3)), np.ones(3, np.float32), np.ones(3, np.float32))


def test_what_is_read_only_is_not_written():
    x = normal(40, 96)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        cpu.add_residual(x, x.copy(), None)
    assert cpu.rms_norm(x, x[0], 1e-5).shape == x.shape
    for encode in (cpu.encode_grouped, cpu.encode_residual):
        assert encode(x, normal(1, 40, 96), np.zeros((1, 40), np.float32)).shape == (40, 1)


@BACKENDS
@SIZES
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("in_y", [True, False])
def test_residual_sum_and_rms_norm(kernels, n, biased, in_y):
    x, y, bias, weight = normal(n, 65), normal(n, 65, seed=1), normal(65, seed=2), normal(65, seed=3)
    total = x.astype(np.float64) + y + (bias if biased else 0)
    expected = torch.nn.functional.rms_norm(torch.from_numpy(total), (65,), torch.from_numpy(weight).double(), 1e-5)
    out = y if in_y else np.empty_like(x)
    assert kernels.add_rms_norm(x, y, bias if biased else None, weight, 1e-5, out) is out
    close(x, total)
    close(out, expected.numpy(), 4)


@BACKENDS
@SIZES
@pytest.mark.parametrize(("d_head", "n_heads", "width"), [(2, 1, 2), (6, 3, 25), (16, 2, 32)])
def test_rotate(kernels, n, d_head, n_heads, width):
    """As complex numbers: pair a of a head turned by its angle."""
    x, angles = normal(n, width), 30 * normal(n, d_head // 2, seed=1).astype(np.float64)
    turns = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    expected = x.astype(np.float64)
    for h in range(n_heads):
        u, v = (slice(h * d_head + a, h * d_head + a + d_head // 2) for a in (0, d_head // 2))
        turned = (x[:, u] + 1j * x[:, v]) * np.exp(1j * angles)
        expected[:, u], expected[:, v] = turned.real, turned.imag
    assert kernels.rotate(x, turns, n_heads) is x
    close(x, expected, 2)
    assert np.array_equal(x[:, n_heads * d_head :], expected[:, n_heads * d_head :].astype(np.float32))


ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
    "silu": torch.nn.functional.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@BACKENDS
@SIZES
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activate(kernels, n, biased, name):
    x, bias = 3 * normal(n, 33), normal(33, seed=1) if biased else None
    expected = ACTIVATIONS[name](torch.from_numpy(x.astype(np.float64) + (0 if bias is None else bias))).numpy()
    assert kernels.activate(x, bias, name) is x
    close(x, expected)


@BACKENDS
@SIZES
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activate_gated(kernels, n, biased, name):
    x, gate = normal(n, 33), 3 * normal(n, 33, seed=1)
    bias, gate_bias = (normal(33, seed=2), normal(33, seed=3)) if biased else (None, None)
    wide = [a.astype(np.float64) + (0 if b is None else b) for a, b in ((x, bias), (gate, gate_bias))]
    expected = wide[0] * ACTIVATIONS[name](torch.from_numpy(wide[1])).numpy()
    assert kernels.activate_gated(x, bias, gate, gate_bias, name) is x
    close(x, expected, 4)


@BACKENDS
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_tails(kernels, name):
    x = np.array([[-1e30, -200, -90, -20, -5, -0.0, 1e-8, 5, 20, 90, 200, 1e30]], np.float32)
    expected = ACTIVATIONS[name](torch.from_numpy(x.astype(np.float64))).numpy()
    with np.errstate(over="ignore", invalid="ignore"):
        kernels.activate(x, None, name)
    assert np.all(np.abs(x - expected) <= 4e-7 * np.maximum(1, np.abs(expected)))


@BACKENDS
def test_unknown_activation(kernels):
    with pytest.raises(ValueError, match="'swish'"):
        kernels.activate(normal(2, 2), None, "swish")


def test_exp_and_erf_accuracy():
    x = np.linspace(-87, 0, 20001).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    assert max(abs(np.array([exp(v) for v in x]) - exact) / exact) < 3e-7
    x = np.linspace(-6, 6, 20001).astype(np.float32)
    assert max(abs(erf(v) - math.erf(v)) for v in x) < 5e-7


# ---- attention


def start(n_heads, n_queries, d_head):
    return (
        np.zeros((n_heads, n_queries, d_head), np.float32),
        np.full((n_heads, n_queries), -np.inf, np.float32),
        np.zeros((n_heads, n_queries), np.float32),
    )


def attention(kernels, q, parts, causal=None):
    """out (a, H*d) after one step per part (k, v, key_bias)."""
    acc, row_max, row_sum = start(*q.shape)
    for k, v, key_bias in parts:
        kernels.attend(q, k, v, key_bias, causal, acc, row_max, row_sum)
    out = np.empty((q.shape[1], q.shape[0] * q.shape[2]), np.float32)
    kernels.finish(acc, row_sum, out)
    return out


@pytest.mark.parametrize("window, most", [(0, 3), (1, 0), (7, 3), (300, 70)])
def test_capped_scores_biases_by_distance_and_windows(window, most):
    """Against the softmax written out, in two steps, at positions with holes; and the two backends agree."""
    q, k, v, (a, m), rng = normal(4, 70, 6), normal(2, 700, 6), normal(2, 700, 6), (70, 700), np.random.default_rng(1)
    places = [np.sort(rng.choice(900, n, replace=False)).astype(np.int32) for n in (a, m)]
    relative = normal(4, 2 * most + 1) if most else None
    distance = places[1] - places[0][:, None]
    scores = 1.5 * np.tanh(q.astype(np.float64) @ np.repeat(k, 2, axis=0).swapaxes(1, 2) / 1.5)
    scores += relative[:, np.clip(distance, -most, most) + most] if most else 0
    scores = np.where(abs(distance) < window, scores, -np.inf) if window else scores
    weights = np.exp(scores)
    expected = weights @ np.repeat(v, 2, axis=0) / np.maximum(weights.sum(axis=2, keepdims=True), 1e-300)
    for kernels in (reference, cpu):
        state = start(4, a, 6)
        for part in (slice(0, 300), slice(300, m)):
            near = Near(1.5, window, relative, places[0], places[1][part])
            kernels.attend(q, k[:, part], v[:, part], None, None, *state, near)
        out = np.empty((a, 24), np.float32)
        kernels.finish(state[0], state[2], out)
        np.testing.assert_allclose(out, expected.swapaxes(0, 1).reshape(a, 24), rtol=0, atol=3e-5)


@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("causal", [None, 0, 5])
@pytest.mark.parametrize("n_queries, n_keys, d", [(1, 5, 6), (70, 70, 16), (150, 600, 64), (9, 0, 16)])
@pytest.mark.parametrize("kernels", [reference, cpu, bfloat16], ids=["reference", "float32", "bfloat16"])
def test_first_and_last_step(kernels, n_queries, n_keys, d, causal, n_threads):
    """A first step reads no state, and a last one finishes: to the bit what zeros and `finish` give. out is strided."""
    q, k, v = normal(4, n_queries, d), normal(2, n_keys, d, seed=1), normal(2, n_keys, d, seed=2)
    part = slice(0, n_keys // 2), slice(n_keys // 2, n_keys)
    if causal is not None:
        part = part[:1]
    _team.set_size(n_threads)
    try:
        expected = attention(kernels, q, [(k[:, p], v[:, p], None) for p in part], causal)
        dirty = tuple(np.full_like(state, np.nan) for state in start(*q.shape))
        out = np.full((n_queries, 4 * d + 3), np.nan, np.float32)
        for i, p in enumerate(part):
            steps = dict(begins=i == 0, out=out[:, : 4 * d] if i == len(part) - 1 else None)
            kernels.attend(q, k[:, p], v[:, p], None, causal, *dirty, **steps)
    finally:
        _team.set_size(1)
    assert np.array_equal(out[:, : 4 * d], expected) and np.isnan(out[:, 4 * d :]).all()


def truth(q, k, v, key_bias=None, causal=None):
    """Softmax attention in float64; a row that sees no key gives 0."""
    q, k, v = (z.astype(np.float64) for z in (q, k, v))
    k, v = (np.repeat(z, len(q) // len(z), axis=0) for z in (k, v))
    scores = np.einsum("had,hmd->ham", q, k) + (0 if key_bias is None else key_bias)
    if causal is not None:
        scores[:, np.arange(k.shape[1]) > np.arange(q.shape[1])[:, None] + causal] = -np.inf
    weights = np.exp(scores - np.maximum(scores.max(axis=2, keepdims=True, initial=-np.inf), -1e300))
    total = weights.sum(axis=2, keepdims=True)
    heads = np.einsum("ham,hmd->had", weights / np.where(total == 0, 1, total), v)
    return heads.transpose(1, 0, 2).reshape(q.shape[1], q.shape[0] * q.shape[2])


@BACKENDS
@pytest.mark.parametrize("n_queries", [0, 1, 7, 8, 33])
@pytest.mark.parametrize("n_keys", [0, 1, 8, 9, 33])
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [None, 0, 3, -4])
def test_attention(kernels, n_queries, n_keys, n_kv_heads, causal):
    q, k, v = normal(4, n_queries, 16), normal(n_kv_heads, n_keys, 16, seed=1), normal(n_kv_heads, n_keys, 16, seed=2)
    close(attention(kernels, q, [(k, v, None)], causal), truth(q, k, v, None, causal), 16)


@BACKENDS
@pytest.mark.parametrize(("causal", "d_head"), [(None, 8), (130, 8), (None, 48), (130, 48)])
def test_attention_over_many_tiles(kernels, causal, d_head):
    """More queries, keys and heads than one tile holds, read from packed projections through strides."""
    n_queries, n_keys = 270, 1100
    packed = normal(n_keys, 2 * 3 * d_head)  # keys of three heads, then their values
    k, v = packed.reshape(n_keys, 2, 3, d_head).transpose(1, 2, 0, 3)
    q = normal(n_queries, 6 * d_head, seed=1).reshape(n_queries, 6, d_head).transpose(1, 0, 2)
    bias = normal(n_keys, seed=2)
    close(attention(kernels, q, [(k, v, bias)], causal), truth(q, k, v, bias, causal), d_head)


@BACKENDS
@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_torch_sdpa(kernels, causal):
    q, k, v = normal(4, 33, 16), normal(2, 33, 16, seed=1), normal(2, 33, 16, seed=2)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(z)[None] for z in (q, k, v)), is_causal=causal, enable_gqa=True
    )
    actual = attention(kernels, q * np.float32(0.25), [(k, v, None)], 0 if causal else None)
    close(actual, expected[0].numpy().transpose(1, 0, 2).reshape(33, -1), 16)


@BACKENDS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_split_in_any_order_is_the_whole(kernels, data):
    n_keys = data.draw(st.integers(0, 40))
    cuts = sorted(data.draw(st.lists(st.integers(0, n_keys), max_size=4)))
    bounds = list(zip([0, *cuts], [*cuts, n_keys], strict=True))
    order = data.draw(st.permutations(bounds))
    spread = data.draw(st.sampled_from([1, 30]))  # 30: the parts' maxima are far apart
    d = data.draw(st.sampled_from([8, 16]))  # the latter in tiles
    q, k, v, bias = spread * normal(2, 9, d), normal(2, n_keys, d, seed=1), normal(2, n_keys, d, seed=2), normal(n_keys)
    bias[data.draw(st.lists(st.booleans(), min_size=n_keys, max_size=n_keys))] = -np.inf
    parts = [(k[:, a:b], v[:, a:b], bias[a:b]) for a, b in order]
    close(attention(kernels, q, parts), truth(q, k, v, bias), d * spread**2)


@BACKENDS
def test_log_count_bias_equals_repeated_keys(kernels):
    q, k, v = normal(2, 9, 8), normal(2, 7, 8, seed=1), normal(2, 7, 8, seed=2)
    counts = np.array([1, 0, 3, 2, 0, 5, 1])
    with np.errstate(divide="ignore"):
        bias = np.log(counts).astype(np.float32)  # log 0 = -inf: a code that nobody sent
    repeated = truth(q, np.repeat(k, counts, axis=1), np.repeat(v, counts, axis=1))
    close(attention(kernels, q, [(k, v, bias)]), repeated, 8)


@BACKENDS
@pytest.mark.parametrize("n_keys", [1, 7, 8, 33])
@pytest.mark.parametrize("repeat", [1, 3])
def test_rows_of_a_table_after_other_keys(kernels, n_keys, repeat):
    """`attend_rows` is one more step, as if its rows had been taken out of the table; rows may come twice."""
    q, table, bias = normal(2, repeat, 8), normal(11, 32), normal(n_keys)
    rows = np.random.default_rng(n_keys).integers(0, 11, n_keys).astype(np.uint16)
    k, v = table[rows].reshape(n_keys, 2, 2, 8).transpose(1, 2, 0, 3)
    before = normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2), normal(5)
    acc, row_max, row_sum = start(2, repeat, 8)
    kernels.attend(q, *before[:2], before[2], None, acc, row_max, row_sum)
    kernels.attend_rows(q, table, rows, bias, acc, row_max, row_sum)
    out = np.empty((repeat, 16), np.float32)
    kernels.finish(acc, row_sum, out)
    together = (np.concatenate([a, b], axis=axis) for a, b, axis in zip(before, (k, v, bias), (1, 1, 0), strict=True))
    close(out, truth(q, *together), 8)


@BACKENDS
@pytest.mark.parametrize("n_keys", [1, 8, 33])
@pytest.mark.parametrize(("n_codes", "n_value_codes", "size"), [(1, 1, 9), (3, 3, 9), (5, 2, 300)])
@pytest.mark.parametrize("scaled", [True, False])
def test_softmax_over_codes(kernels, n_keys, n_codes, n_value_codes, size, scaled):
    """`attend_codes` finds the same softmax, and gathers the same values, as rows rebuilt from codes."""
    rng = np.random.default_rng([n_keys, size])
    dtype = np.uint8 if size <= 256 else np.uint16
    key_codes, value_codes = (rng.integers(0, size, (n_keys, n)).astype(dtype) for n in (n_codes, n_value_codes))
    parts, entries, offset = normal(n_codes, size, 6), normal(n_value_codes, size, 4), normal(6)
    scale = np.abs(normal(n_keys)) if scaled else None
    factor = np.ones(n_keys) if scale is None else scale.astype(np.float64)
    row_max, row_sum = normal(2, 6)
    weights = kernels.attend_codes(key_codes, parts, value_codes, scale, offset, row_max, row_sum)
    scores = sum(parts[c, key_codes[:, c]].astype(np.float64) for c in range(n_codes)) * factor[:, None] + offset
    shares = np.exp(scores - scores.max(axis=0))  # (m, 6)
    close(row_max, scores.max(axis=0), 8)
    close(row_sum, shares.sum(axis=0), 64)
    values = sum(entries[c, value_codes[:, c]].astype(np.float64) for c in range(n_value_codes)) * factor[:, None]
    close(np.einsum("ckh,cke->he", weights, entries), shares.T @ values, 64)


@BACKENDS
@pytest.mark.filterwarnings("error")
def test_hidden_keys_leave_the_state_as_it_was(kernels):
    q, k, v = normal(2, 3, 8), normal(2, 5, 8, seed=1), normal(2, 5, 8, seed=2)
    acc, row_max, row_sum = start(2, 3, 8)
    kernels.attend(q, k, v, np.full(5, -np.inf, np.float32), None, acc, row_max, row_sum)
    assert not acc.any()
    assert np.isneginf(row_max).all()
    assert not row_sum.any()
    kernels.attend(q, k, v, None, None, acc, row_max, row_sum)
    before = acc.copy(), row_max.copy(), row_sum.copy()
    kernels.attend(q, k, v, np.full(5, -np.inf, np.float32), None, acc, row_max, row_sum)
    assert all(map(np.array_equal, before, (acc, row_max, row_sum)))


@BACKENDS
def test_a_hidden_key_weighs_exactly_nothing(kernels):
    q, k, v = normal(1, 3, 8), normal(1, 2, 8, seed=1), normal(1, 2, 8, seed=2)
    v[0, 1] = 1e38  # e^-87 of it would show
    bias = np.array([0, -np.inf], np.float32)
    close(attention(kernels, q, [(k, v, bias)]), truth(q, k[:, :1], v[:, :1]))


@BACKENDS
def test_finish_fills_a_strided_view(kernels):
    acc, row_sum = normal(2, 5, 4), np.ones((2, 5), np.float32)
    row_sum[1, 3] = 0
    wide = np.full((5, 11), 7, np.float32)
    kernels.finish(acc, row_sum, wide[:, 1:9])
    expected = np.concatenate(acc, axis=1)
    expected[3, 4:] = 0
    assert np.array_equal(wide[:, 1:9], expected)
    assert (wide[:, [0, 9, 10]] == 7).all()


def test_threads_finish_as_one_does():
    acc, row_sum, outs = normal(3, 400, 64), normal(3, 400) ** 2, []
    try:
        for n_threads in (1, 2, 3, 5):
            _team.set_size(n_threads)
            outs.append(np.zeros((400, 192), np.float32))
            cpu.finish(acc, row_sum, outs[-1])
    finally:
        _team.set_size(1)
    assert all(np.array_equal(outs[0], out) for out in outs[1:])


# ---- narrow weights

STORED = {"float16": np.float16, "bfloat16": np.uint16, "int8": np.int8}


def stored(dtype, *shape):
    """Random numbers as `dtype` lies in memory."""
    bits = np.random.default_rng(len(shape)).integers(0, 1 << 16, shape, np.uint16)
    if dtype == "int8":
        return bits.astype(np.int8)
    if dtype == "bfloat16":  # of moderate size: 2^-12 to 2^4
        return (bits & 0x8000 | (115 + (bits >> 3) % 16) << 7 | bits & 0x7F).astype(np.uint16)
    return np.where(bits & 0x7C00 == 0x7C00, bits & 0xBFFF, bits).astype(np.uint16).view(np.float16)


def exactly(values):
    """Stored numbers in float64, by PyTorch."""
    tensor = torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values.copy())
    return (tensor.view(torch.bfloat16) if values.dtype == np.uint16 else tensor).double().numpy()


@BACKENDS
def test_every_half_number_is_widened_exactly(kernels):
    """All finite ones, subnormal numbers and both zeros among them."""
    every = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    for values, exponent in ((every.view(np.float16), 0x7C00), (every, 0x7F80)):
        values = np.where(every & exponent == exponent, every & 0x8000, every).view(values.dtype)
        wide = kernels.widen(values, None, 0, np.empty((256, 256), np.float32))
        np.testing.assert_array_equal(wide, exactly(values))
        np.testing.assert_array_equal(np.signbit(wide), every >= 0x8000)


@BACKENDS
@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 7), (8, 16), (21, 33), (0, 4), (16, 130)])
@pytest.mark.parametrize("scaled", [True, False])
def test_products_with_narrow_weights(kernels, dtype, m, n, scaled):
    values, x, y = stored(dtype, m, n), normal(m), normal(n)
    columns, rows = (np.abs(normal(size)) + 1 if scaled else None for size in (n, m))
    wide = exactly(values)
    by_column, by_row = (1, 1) if not scaled else (columns, rows[:, None])
    close(kernels.vecmat(x, values, columns, np.full(n, np.nan, np.float32)), x @ (wide * by_column), m)
    close(kernels.matvec(values, rows, y, np.full(m, np.nan, np.float32)), (wide * by_row) @ y, n)
    for first, width in ((0, n), (n // 3, n // 2)):
        tile = kernels.widen(values, columns, first, np.full((m, width), np.nan, np.float32))
        close(tile, (wide * by_column)[:, first : first + width])


def compiled():
    """How many times each cached function of the cpu backend has been compiled or loaded."""
    modules = (_attention, _codes, _encode, _rows, _weights)
    functions = (f for module in modules for f in vars(module).values() if isinstance(f, Dispatcher))
    return {f.__name__: len(f.signatures) for f in functions if isinstance(f._cache, FunctionCache)}


def test_warm_up_leaves_nothing_to_compile():
    cpu.warm_up()
    before = compiled()
    assert before["_pick"] and before["_softmax_step"] and before["_table_sum"]
    x = normal(3, 8)
    for n_codes in (3, 300):
        entries = normal(2, n_codes, 3)
        codes = cpu.encode_grouped(x[:, 1:7], entries, half_norms(entries))
        cpu.unpack(cpu.pack(codes, 9), 3, 2, 9)
        cpu.decode_grouped(codes[:, ::1], entries)
        cpu.table_sum(codes[::2], entries, x[::2, 0], x[0, :3])
    cpu.layer_norm(x[:, :5], x[0, :5], x[1, :5], 1e-6)
    cpu.add_residual(x, x[::-1].copy(), None)
    cpu.add_layer_norm(x, x[::-1].copy(), x[0], x[1], x[2], 1e-6, x.copy())
    cpu.add_rms_norm(x, x[::-1].copy(), None, x[1], 1e-6, x.copy())
    cpu.rotate(x, x[:, :4].copy(), 2)
    cpu.activate_gated(x, None, x.copy(), None, "relu")
    for dtype in STORED:
        values = stored(dtype, 5, 8)
        values.flags.writeable = False  # as mapped files are
        cpu.matvec(values, None, x[0], cpu.vecmat(x[0, :5].copy(), values, x[1], x[2].copy())[:5])
        cpu.widen(values[1:3], None, 3, x[:2, :5].copy())
    attention(cpu, x[:, None, :], [(x[:, None, :], x[:, None, :], x[0, :1])], 0)
    acc, row_max, row_sum = start(1, 2, 4)
    cpu.attend_rows(normal(1, 2, 4), x, np.zeros(1, np.uint16), x[0, :1], acc, row_max, row_sum)
    for dtype in (np.uint8, np.uint16):
        cpu.attend_codes(
            np.zeros((1, 2), dtype), normal(2, 3, 2), np.zeros((1, 1), dtype), None, x[0, :2], *normal(2, 2)
        )
    assert compiled() == before
