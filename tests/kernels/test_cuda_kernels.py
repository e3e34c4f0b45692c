"""Every CUDA kernel against `reference`: emulated on the CPU in several orders of threads, and on a GPU (tests/gpu.sh).

Arrays end at forbidden pages, shared memory is watched for races and starts as NaN: see cuda_emulation/emulator.h.
"""

import numpy as np
import pytest

from astra_mpi.kernels import reference
from astra_mpi.kernels.integers import Moved, integers
from astra_mpi.kernels.near import Near
from helpers.cuda_emulation.devices import GPU, device, xp
from helpers.cuda_emulation.emulator import ORDERS

EPS = np.finfo(np.float32).eps
HALF_EPS = 2.0**-11
SIZES = pytest.mark.parametrize("n", [0, 1, 33])
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float32", "float16"])


@pytest.fixture(params=[*(pytest.param(order, id=f"order{order}") for order in ORDERS), GPU])
def gpu(request):
    with device(request.param):
        from astra_mpi.kernels import cuda

        yield cuda


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32).astype(dtype)


def codes_of(n, C, K, seed=0):
    codes = np.random.default_rng([seed, n, C, K]).integers(0, K, (n, C))
    return codes.astype(np.uint8 if K <= 256 else np.uint16)


def there(*arrays):
    placed = [a if a is None else xp().asarray(a) for a in arrays]
    return placed[0] if len(placed) == 1 else placed


def close(actual, expected, terms=1):
    """Equal to the rounding of `terms` added terms in float32, and of the result where it is float16."""
    actual = actual if isinstance(actual, np.ndarray) else actual.get()
    assert actual.shape == expected.shape
    if actual.size:
        bound = 6 * EPS * np.sqrt(terms) + (2 * HALF_EPS if actual.dtype == np.float16 else 0)
        error = np.abs(actual.astype(np.float64) - expected).max()
        bound *= max(1.0, np.abs(expected).max())
        assert error <= bound, f"largest difference {error:.2e}, bound {bound:.2e}"


def half_norms(entries):
    return ((entries.astype(np.float64) ** 2).sum(axis=-1) / 2).astype(np.float32)


def in_float32(*arrays):
    return [a if a is None or a.dtype != np.float16 else a.astype(np.float32) for a in arrays]


# ---- codes


@SIZES
@pytest.mark.parametrize(("groups", "n_codes", "width"), [(1, 33, 24), (3, 300, 5), (2, 130, 8), (2, 1, 4)])
def test_encode_grouped(gpu, n, groups, n_codes, width):
    x, entries = normal(n, groups * width + 4)[:, 2:-2], normal(groups, n_codes, width)
    device = there(normal(n, groups * width + 4))[:, 2:-2]  # rows may be strided
    codes = gpu.encode_grouped(device, entries, half_norms(entries))
    expected = reference.encode_grouped(x, entries, half_norms(entries))
    assert codes.dtype == expected.dtype
    assert_nearest(x.reshape(n, groups, width), entries, codes.get(), expected)


def assert_nearest(x, entries, codes, expected):
    """Codes as the reference's, or of an entry that is as near up to rounding."""
    for i, g in np.argwhere(codes != expected):
        distances = ((entries[g].astype(np.float64) - x[i, g]) ** 2).sum(axis=1)
        slack = 64 * EPS * ((x[i, g].astype(np.float64) ** 2).sum() + distances.min())
        assert distances[codes[i, g]] <= distances.min() + slack


@SIZES
@pytest.mark.parametrize(("stages", "n_codes", "width"), [(1, 16, 24), (3, 300, 21)])
def test_encode_residual(gpu, n, stages, n_codes, width):
    x, entries = normal(n, width), normal(stages, n_codes, width)
    device = there(x)
    codes = gpu.encode_residual(device, entries, half_norms(entries)).get()
    assert np.array_equal(device.get(), x)
    assert np.array_equal(codes, reference.encode_residual(x, entries, half_norms(entries)))


def test_encode_many_rows_and_splits(gpu):
    """More than a tile of rows, and entries over several blocks."""
    x, entries = normal(200, 12), normal(1, 700, 12)
    codes = gpu.encode_grouped(there(x), entries, half_norms(entries)).get()
    assert np.array_equal(codes, reference.encode_grouped(x, entries, half_norms(entries)))


@pytest.mark.parametrize("width", [12, 24, 5])
def test_encode_several_tiles_of_entries_in_a_block(gpu, monkeypatch, width):
    from astra_mpi.kernels.cuda import _codes

    monkeypatch.setattr(_codes, "_BLOCKS", 1)
    x, entries = normal(150, 2 * width), normal(2, 300, width)
    codes = gpu.encode_grouped(there(x), entries, half_norms(entries)).get()
    expected = reference.encode_grouped(x, entries, half_norms(entries))
    assert_nearest(x.reshape(150, 2, width), entries, codes, expected)


def test_equal_entries_give_the_lowest_index(gpu):
    distinct = normal(1, 150, 33)
    entries = np.ascontiguousarray(np.concatenate([distinct, distinct], axis=1))
    x = distinct[0, :50] + 0.1 * normal(50, 33)
    codes = gpu.encode_grouped(there(x), entries, half_norms(entries)).get()
    assert codes.max() < 150
    equal = np.ones((1, 300, 33), np.float32)
    assert not gpu.encode_grouped(there(x), equal, half_norms(equal)).get().any()


def test_nan_gives_a_valid_code(gpu):
    entries = normal(2, 5, 4)
    assert gpu.encode_grouped(there(np.full((3, 8), np.nan, np.float32)), entries, half_norms(entries)).get().max() < 5


def test_encode_takes_half(gpu):
    x, entries = normal(9, 24, dtype=np.float16), normal(2, 40, 12)
    codes = gpu.encode_grouped(there(x), entries, half_norms(entries)).get()
    assert np.array_equal(codes, reference.encode_grouped(x.astype(np.float32), entries, half_norms(entries)))


@SIZES
@pytest.mark.parametrize(("bits", "n_codes"), [(0, 1), (1, 2), (8, 2), (10, 3), (16, 1)])
def test_pack_and_unpack(gpu, n, bits, n_codes):
    codes = codes_of(n, n_codes, 1 << bits)
    message = gpu.pack(there(codes), bits)
    assert np.array_equal(message.get(), reference.pack(codes, bits))
    assert np.array_equal(gpu.unpack(message, n, n_codes, bits).get(), codes)
    with pytest.raises(ValueError, match="has"):
        gpu.unpack(message, n + 9, n_codes, max(bits, 1))


@SIZES
@DTYPES
@pytest.mark.parametrize(("C", "K", "E"), [(1, 16, 37), (5, 300, 36), (8, 16, 520), (3, 15, 96)])
def test_table_sum(gpu, n, dtype, C, K, E):
    tables, codes = normal(C, K, E, dtype=dtype), codes_of(n, C, K)
    for scale, bias in ((None, None), (normal(n, seed=1), normal(E, seed=2))):
        out = gpu.table_sum(there(codes), tables, there(scale), bias)
        assert out.dtype == dtype
        close(out, reference.table_sum(codes, *in_float32(tables), scale, bias), C)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_slices_of_tables(gpu, dtype):
    """Several turns of a block; more shared memory than a kernel has unasked, then less, then more again."""
    for C, K in ((4, 300), (4, 16), (4, 300), (5, 256)):
        n = max(2 * K, 300)
        tables, codes = normal(C, K, 64, dtype=dtype), codes_of(n, C, K)
        out = gpu.table_sum(there(codes), tables, None, None)
        close(out, reference.table_sum(codes, *in_float32(tables), None, None), C)


@pytest.mark.parametrize(
    ("n", "dtype", "shape", "columns"),
    [
        (512, np.float32, (4, 256, 1536), 16),
        (512, np.float16, (4, 256, 1536), 32),
        (512, np.float32, (8, 256, 1536), 8),
        (511, np.float32, (4, 256, 1536), 0),  # few tokens
        (9999, np.float32, (32, 1024, 1536), 0),  # no slice fits
        (9999, np.float32, (4, 256, 1540), 0),
    ],
)
def test_which_tables_are_cut_into_slices(gpu, n, dtype, shape, columns):
    from astra_mpi.kernels.cuda._codes import _slice

    assert _slice(n, np.broadcast_to(dtype(0), shape)) == columns


@SIZES
def test_decode_and_norms(gpu, n):
    entries, codes = normal(3, 300, 5), codes_of(n, 3, 300)
    assert np.array_equal(gpu.decode_grouped(there(codes), entries).get(), reference.decode_grouped(codes, entries))
    close(gpu.decode_residual(there(codes), entries), reference.decode_residual(codes, entries), 3)
    gram = np.ascontiguousarray(np.einsum("ikw,jlw->ijkl", entries[:, :9], entries[:, :9]))
    codes = codes_of(n, 3, 9)
    norms = gpu.gram_sum(there(codes), gram)
    assert norms.dtype == np.float64
    close(norms, reference.gram_sum(codes, gram), 9)


@pytest.mark.parametrize(
    ("n", "widths", "m"), [(0, [5], 3), (1, [17], 70), (67, [40, 230], 66), (65, [1], 1), (3, [0], 4)]
)
def test_integer_product(gpu, n, widths, m):
    """To the bit as on a CPU, with what is added and without, and where a row is not finite."""
    parts = [normal(n, width) for width in widths]
    weights = integers(normal(sum(widths), m, seed=1))
    if n > 3:
        parts[0][1], parts[0][2, 0], parts[0][3] = 0, np.nan, 1e-35
    for moved in (None, Moved(normal(n, m, seed=2), 0.7, normal(m, seed=3))):
        want = reference.integer_product(parts, weights, np.empty((n, m), np.float32), moved)
        given = moved and moved._replace(state=there(moved.state))
        found = gpu.integer_product([there(part) for part in parts], weights, xp().empty((n, m), np.float32), given)
        np.testing.assert_array_equal(found.get(), want)


@SIZES
@pytest.mark.parametrize("K", [7, 130, 300])
def test_counting(gpu, n, K):
    codes, offsets = codes_of(n, 1, K), np.array([0, n // 3, n // 3, n])
    assert np.array_equal(gpu.count_codes(there(codes), K).get(), reference.count_codes(codes, K))
    values, logarithms, ends = (a.get() for a in gpu.distinct(there(codes), there(offsets), K))
    for s in range(3):
        wanted, counts = np.unique(codes[offsets[s] : offsets[s + 1]], return_counts=True)
        found = slice(s * K, ends[s])
        assert np.array_equal(values[found], wanted)
        assert np.allclose(logarithms[found], np.log(counts), atol=1e-6)


# ---- rows


@SIZES
@DTYPES
@pytest.mark.parametrize("width", [65, 132])
def test_norms(gpu, n, dtype, width):
    x, y = normal(n, width, dtype=dtype) + dtype(3), normal(n, width, seed=1, dtype=dtype)
    weight, bias, added = (normal(width, seed=s, dtype=dtype) for s in (2, 3, 4))
    x32, y32, weight32, bias32, added32 = in_float32(x, y, weight, bias, added)
    close(gpu.layer_norm(*there(x, weight, bias), 1e-5), reference.layer_norm(x32, weight32, bias32, 1e-5), 4)
    close(gpu.rms_norm(*there(x, weight), 1e-5), reference.rms_norm(x32, weight32, 1e-5), 4)
    for extra, extra32 in ((None, None), (added, added32)):
        total = x32 + y32 + (0 if extra is None else extra32)
        stored = total.astype(dtype).astype(np.float32)
        device_x, device_y = there(x, y)
        out = gpu.add_layer_norm(device_x, device_y, there(extra), *there(weight, bias), 1e-5, device_y)
        assert out is device_y
        close(device_x, total)
        close(out, reference.layer_norm(stored, weight32, bias32, 1e-5), 16)
        device_x, device_y = there(x, y)
        out = gpu.add_rms_norm(device_x, device_y, there(extra), there(weight), 1e-5, xp().empty(x.shape, dtype))
        close(out, reference.rms_norm(stored, weight32, 1e-5), 16)
        close(gpu.add_residual(*there(x, y), there(extra)), total)
    close(gpu.scale_add(*there(x, weight, bias)), x32 * weight32 + bias32)


@DTYPES
def test_norm_of_strided_rows(gpu, dtype):
    wide, weight, bias = normal(5, 40, dtype=dtype), normal(24, seed=1, dtype=dtype), normal(24, seed=2, dtype=dtype)
    for first in (3, 8):  # with and without vector loads
        expected = reference.layer_norm(*in_float32(wide[:, first : first + 24], weight, bias), 1e-5)
        close(gpu.layer_norm(there(wide)[:, first : first + 24], *there(weight, bias), 1e-5), expected, 4)


@DTYPES
@pytest.mark.parametrize(("n", "width"), [(0, 4), (33, 37), (3, 520)])
@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "relu", "silu", "quick_gelu"])
def test_activations(gpu, n, dtype, width, name):
    x, gate = 3 * normal(n, width, dtype=dtype), 3 * normal(n, width, seed=1, dtype=dtype)
    bias, gate_bias = normal(width, seed=2, dtype=dtype), normal(width, seed=3, dtype=dtype)
    for extra in (None, bias):
        close(gpu.activate(there(x), there(extra), name), reference.activate(*in_float32(x.copy(), extra), name), 4)
    expected = reference.activate_gated(*in_float32(x.copy(), bias, gate.copy(), gate_bias), name)
    close(gpu.activate_gated(*there(x, bias, gate, gate_bias), name), expected, 4)


def test_unknown_activation(gpu):
    with pytest.raises(ValueError, match="unknown activation"):
        gpu.activate(there(normal(1, 4)), None, "tanh")


@SIZES
@DTYPES
def test_rotate(gpu, n, dtype):
    x, turns = normal(n, 30, dtype=dtype), normal(n, 6, seed=1)
    expected = reference.rotate(*in_float32(x.copy()), turns, 3)
    close(gpu.rotate(*there(x, turns), 3), expected)


@DTYPES
def test_segment_sum(gpu, dtype):
    x, starts = normal(11, 130, dtype=dtype), np.array([0, 4, 5, 9])
    close(gpu.segment_sum(there(x), starts), reference.segment_sum(*in_float32(x), starts), 4)


# ---- attention


def start(n_heads, n, d):
    return np.zeros((n_heads, n, d), "f4"), np.full((n_heads, n), -np.inf, "f4"), np.zeros((n_heads, n), "f4")


def attention(kernels, q, steps, place=lambda a: a, blank=np.zeros):
    """steps: (k, v, key_bias, causal) -> (a, H d)."""
    n_heads, n, d = q.shape
    state = [place(a) for a in start(n_heads, n, d)]
    for k, v, bias, causal in steps:
        kernels.attend(place(q), place(k), place(v), None if bias is None else place(bias), causal, *state)
    out = blank((n, n_heads * d), q.dtype)
    kernels.finish(state[0], state[2], out)
    return out


def compare(gpu, q, steps, slack=1.0):
    expected = attention(reference, *in_float32(q), [(*in_float32(k, v), bias, causal) for k, v, bias, causal in steps])
    out = attention(gpu, q, steps, there, xp().zeros)
    close(out, expected, 8 * slack)


@DTYPES
def test_capped_scores_biases_by_distance_and_windows(gpu, dtype):
    """Both forms: one sequence, and two packed ones whose positions have holes."""
    heads, (a, m), d = (4, 2), (70, 131), 20
    rng, window = np.random.default_rng(0), 5
    places = [np.sort(rng.choice(200, n, replace=False)).astype(np.int32) for n in (a, m)]
    q, kv = normal(a, 4 * d, dtype=dtype) * dtype(d**-0.5), normal(m, 2 * 2 * d, seed=1, dtype=dtype)
    bounds, relative, bias = [np.array([0, 30, a]), np.array([0, 61, m])], normal(4, 21), normal(m)
    expected, state = np.zeros((a, 4 * d), np.float32), [np.zeros(a * 4 * n, np.float32) for n in (d, 1, 1)]
    state[1][:] = -np.inf
    for s in range(2):
        (rows, keys), own = (slice(*b[s : s + 2]) for b in bounds), start(4, bounds[0][s + 1] - bounds[0][s], d)
        near = Near(2.5, window, relative, places[0][rows], places[1][keys])
        each = in_float32(q[rows], kv[keys, : 2 * d], kv[keys, 2 * d :])
        each = [x.reshape(len(x), -1, d).swapaxes(0, 1) for x in each]
        reference.attend(*each, bias[keys], None, *own, near)
        reference.finish(own[0], own[2], expected[rows])
    near = Near(2.5, window, *there(relative, *places))
    state, out = there(*state), xp().zeros(q.shape, dtype)
    gpu.attend_packed(*there(q, kv), heads, (*bounds, None), there(bias), None, None, *state, near)
    gpu.finish_packed(state[0], state[2], out, 4)
    close(out, expected, 8)


@pytest.mark.parametrize("d", [4, 20, 32, 64, 128])
@DTYPES
def test_attention_of_all_widths(gpu, dtype, d):
    q, k, v = (normal(2, n, d, seed=s, dtype=dtype) for s, n in enumerate((9, 70, 70)))
    compare(gpu, q * dtype(d**-0.5), [(k, v, None, None)])


@pytest.mark.parametrize(("d", "causal"), [(12, None), (40, 3), (64, None)])
def test_half_attention_with_twice_the_queries(gpu, monkeypatch, d, causal):
    """Two products of rows per warp, as where there are many blocks."""
    from astra_mpi.kernels.cuda import _attention

    monkeypatch.setattr(_attention, "_BLOCKS", 1)
    q, k, v, far, far_v = (normal(2, n, d, seed=s, dtype=np.float16) for s, n in enumerate((150, 140, 140, 67, 67)))
    bias = normal(67, seed=9)
    bias[::4] = -np.inf
    compare(gpu, q * np.float16(d**-0.5), [(far, far_v, bias, None), (k, v, None, causal)])


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 64), (64, 65), (70, 130), (5, 0)])
@DTYPES
def test_attention_sizes_and_grouped_queries(gpu, dtype, queries, keys):
    q, k, v = (normal(h, n, 16, seed=h, dtype=dtype) for h, n in ((6, queries), (2, keys), (2, keys)))
    bias = normal(keys, seed=7)
    bias[::3] = -np.inf  # hidden keys
    compare(gpu, q / dtype(4), [(k, v, bias, None)])


@pytest.mark.parametrize("causal", [-3, 0, 1, 40])
@DTYPES
def test_causal_attention_in_steps(gpu, dtype, causal):
    """Two steps of an online softmax, the second of it causal; early queries see nothing of some steps."""
    q, k, v, far, far_v = (normal(2, n, 24, seed=s, dtype=dtype) for s, n in enumerate((70, 100, 100, 67, 67)))
    compare(gpu, q / dtype(5), [(far, far_v, normal(67, seed=9), None), (k, v, None, causal)])
    compare(gpu, q / dtype(5), [(k, v, None, causal)])


@DTYPES
def test_hidden_keys_leave_the_state_as_it_was(gpu, dtype):
    q, k, v = (normal(2, n, 8, seed=s, dtype=dtype) for s, n in enumerate((3, 5, 5)))
    hidden = np.full(5, -np.inf, np.float32)
    state = there(*start(2, 3, 8))
    gpu.attend(*there(q, k, v), there(hidden), None, *state)
    assert not state[0].get().any()
    assert np.isneginf(state[1].get()).all()
    gpu.attend(*there(q, k, v), None, None, *state)
    before = [a.get() for a in state]
    gpu.attend(*there(q, k, v), there(hidden), None, *state)
    for a, b in zip(before, state, strict=True):
        assert np.allclose(a, b.get(), rtol=1e-6)


@DTYPES
def test_high_scores_of_many_keys_keep_their_weights(gpu, dtype):
    """Of equal keys every one weighs the same, however many tiles come after it."""
    q, k = np.full((1, 1, 16), 4.33, dtype), np.full((1, 1280, 16), 4.33, dtype)
    v = np.arange(1280 * 16).reshape(1, 1280, 16) < 640 * 16
    state = there(*start(1, 1, 16))
    gpu.attend(*there(q, k, v.astype(dtype)), None, None, *state)
    assert np.allclose(state[2].get(), 1280, rtol=4e-6)
    assert np.allclose(state[0].get(), 640, rtol=4e-6)


@DTYPES
@pytest.mark.parametrize("causal", [None, 0])
def test_packed_sequences(gpu, dtype, causal):
    """Ragged sequences, one without queries and one without keys, in one launch: as one by one."""
    heads, d = (4, 2), 12
    q_offsets = np.array([0, 5, 5, 71, 74])
    k_offsets = q_offsets if causal is not None else np.array([0, 9, 12, 90, 90])
    n, m = q_offsets[-1], k_offsets[-1]
    queries, kv = normal(n, 4 * d + 5, dtype=dtype)[:, : 4 * d], normal(m, 2 * 2 * d, seed=1, dtype=dtype)
    bias = normal(m, seed=2)
    acc, row_max, row_sum = there(np.zeros(n * 4 * d, "f4"), np.full(n * 4, -np.inf, "f4"), np.zeros(n * 4, "f4"))
    spans = q_offsets, k_offsets, None
    device = there(normal(n, 4 * d + 5, dtype=dtype))[:, : 4 * d]
    gpu.attend_packed(device, there(kv), heads, spans, there(bias), None, causal, acc, row_max, row_sum)
    out = xp().zeros((n, 4 * d), dtype)
    gpu.finish_packed(acc, row_sum, out, 4)

    def split(x, h):
        return in_float32(x)[0].reshape(len(x), h, d).transpose(1, 0, 2)

    for s in range(4):
        rows, keys = slice(*q_offsets[s : s + 2]), slice(*k_offsets[s : s + 2])
        if rows.start < rows.stop:
            step = split(kv[keys, : 2 * d], 2), split(kv[keys, 2 * d :], 2), bias[keys], causal
            close(out[rows], attention(reference, split(queries[rows], 4), [step]), 8)


@DTYPES
def test_counted_keys_are_read_from_the_table(gpu, dtype):
    """Keys by row of a table, one per distinct code with its count, how many only the device knows: as all of them."""
    heads, K = (2, 2), 40
    q_offsets, k_offsets = np.array([0, 5, 9]), np.array([0, 70, 100])
    queries, table, codes = normal(9, 32, dtype=dtype), normal(K, 64, seed=1, dtype=dtype), codes_of(100, 1, K)
    answers = []
    for counted in (False, True):
        acc, row_max, row_sum = there(np.zeros(9 * 32, "f4"), np.full(18, -np.inf, "f4"), np.zeros(18, "f4"))
        if counted:
            rows, bias, ends = gpu.distinct(there(codes), there(k_offsets), K)
            spans = q_offsets, np.arange(3) * K, ends
        else:
            rows, bias, spans = there(codes[:, 0].astype(np.int32)), None, (q_offsets, k_offsets, None)
        gpu.attend_packed(*there(queries, table), heads, spans, bias, rows, None, acc, row_max, row_sum)
        out = xp().zeros((9, 32), dtype)
        gpu.finish_packed(acc, row_sum, out, 2)
        answers.append(out.get().astype(np.float32))
    expected = []
    for a, b, far in ((0, 5, codes[:70, 0]), (5, 9, codes[70:, 0])):
        q, kv = in_float32(queries[a:b].reshape(-1, 2, 16), table[far].reshape(-1, 4, 16))
        q, k, v = (part.transpose(1, 0, 2) for part in (q, kv[:, :2], kv[:, 2:]))
        expected.append(attention(reference, q, [(k, v, None, None)]))
    for answer in answers:
        assert np.abs(answer - np.concatenate(expected)).max() < (1e-5 if dtype == np.float32 else 4e-3)


def test_too_wide_heads(gpu):
    q = there(normal(1, 2, 300))
    with pytest.raises(ValueError, match="too wide"):
        gpu.attend(q, q, q, None, None, *there(*start(1, 2, 300)))
    with pytest.raises(ValueError, match="too wide"):
        gpu.attend_new(q[0], q[0], (1, 1), (None, None), 2, None, None, None, True)


# ---- attention of new tokens


def new_state(n, n_heads, d):
    """As `attend_new` takes it, before the first step: never read."""
    return there(np.full((n, n_heads * (d + 2)), np.nan, np.float32))


def expected_of(q, kv, heads, parts):
    """parts: per sequence (keys' rows, key_bias or None), one step each -> (n, H d) by the reference."""
    d = q.shape[1] // heads[0]
    q, kv = in_float32(q, kv)
    rows = []
    for row, (index, bias) in zip(q, parts, strict=True):
        k, v = kv[index].reshape(len(index), 2, heads[1], d).transpose(1, 2, 0, 3)
        rows.append(attention(reference, row.reshape(heads[0], 1, d), [(k, v, bias, None)]))
    return np.concatenate(rows)


def new_tokens(gpu, q, heads, steps):
    """steps: what `attend_new` is given, from kv to key_rows -> (n, H d)."""
    state = new_state(len(q), heads[0], q.shape[1] // heads[0])
    for i, (kv, *spans, longest, bias, rows) in enumerate(steps):
        gpu.attend_new(q, there(kv), heads, there(*spans), longest, *there(bias, rows), state, i == 0)
    out = xp().zeros(q.shape, q.dtype)
    gpu.finish_new(state, out, heads[0])
    return out


@pytest.mark.parametrize("d", [1, 6, 20, 64, 128, 256])
@DTYPES
def test_new_tokens_of_all_widths(gpu, dtype, d):
    heads = (4, 2)
    q, kv = normal(2, 4 * d, dtype=dtype) / dtype(d**0.5), normal(100, 4 * d, seed=1, dtype=dtype)
    starts, ends = np.array([0, 33]), np.array([30, 100])
    out = new_tokens(gpu, there(q), heads, [(kv, starts, ends, 67, None, None)])
    close(out, expected_of(q, kv, heads, [(np.arange(30), None), (np.arange(33, 100), None)]), 8)


@pytest.mark.parametrize("heads", [(6, 2), (9, 9), (20, 2)])
@pytest.mark.parametrize("share", [256, 3])
@DTYPES
def test_new_tokens_in_parts_and_steps(gpu, monkeypatch, dtype, heads, share):
    """Ragged keys, hidden ones, none; strided rows; a second step; split over blocks or not."""
    from astra_mpi.kernels.cuda import _decode

    monkeypatch.setattr(_decode, "SHARE", share)
    d = 12
    q, kv = normal(3, heads[0] * d + 4, dtype=dtype) / dtype(3.5), normal(80, 2 * heads[1] * d, seed=1, dtype=dtype)
    bias = normal(80, seed=2)
    bias[::3] = -np.inf
    starts, ends = np.array([0, 40, 40]), np.array([40, 40, 79])
    device = there(q)[:, : heads[0] * d]
    second = np.array([70, 1, 20]), np.array([77, 2, 20])
    kv[70:77] *= dtype(3)  # the second step has the higher scores for some
    steps = [(kv, starts, ends, 40, bias, None), (kv, *second, 7, None, None)]
    none = np.zeros(80, np.float32)
    index = [
        np.concatenate([np.arange(*span) for span in spans])
        for spans in zip(zip(starts, ends, strict=True), zip(*second, strict=True), strict=True)
    ]
    added = [np.concatenate([bias[a:b], none[c:e]]) for a, b, c, e in zip(starts, ends, *second, strict=True)]
    want = expected_of(q[:, : heads[0] * d], kv, heads, list(zip(index, added, strict=True)))
    close(new_tokens(gpu, device, heads, steps), want, 8)


@DTYPES
def test_new_tokens_with_capped_scores(gpu, dtype):
    q, kv, bias = normal(2, 4 * 8, dtype=dtype), normal(40, 32, seed=1, dtype=dtype), normal(40, seed=2)
    spans, state = (np.array([0, 33]), np.array([30, 40])), new_state(2, 4, 8)
    out, rows = xp().zeros(q.shape, dtype), []
    gpu.attend_new(there(q), there(kv), (4, 2), there(*spans), 30, there(bias), None, state, True, 1.5)
    gpu.finish_new(state, out, 4)
    for s, (a, b) in enumerate(zip(*spans, strict=True)):
        own = start(4, 1, 8)
        k, v = in_float32(kv)[0][a:b].reshape(b - a, 2, 2, 8).transpose(1, 2, 0, 3)
        reference.attend(in_float32(q)[0][s].reshape(4, 1, 8), k, v, bias[a:b], None, *own, Near(1.5))
        rows.append((own[0] / own[2][..., None]).reshape(1, -1))
    close(out, np.concatenate(rows), 8)


@DTYPES
def test_new_tokens_read_keys_from_a_table(gpu, dtype):
    q, table, rows = normal(2, 32, dtype=dtype), normal(40, 64, seed=1, dtype=dtype), codes_of(70, 1, 40)[:, 0]
    step = table, np.array([0, 50]), np.array([50, 70]), 50, None, rows.astype(np.int32)
    out = new_tokens(gpu, there(q), (2, 2), [step])
    close(out, expected_of(q, table, (2, 2), [(rows[:50], None), (rows[50:], None)]), 8)


def test_states_of_ranks_are_merged(gpu):
    """As if one rank had all keys; one of them has none."""
    heads, d = (6, 3), 8
    q, kv = normal(2, 6 * d), normal(30, 6 * d, seed=1)
    parts = []
    for a, b in ((0, 11), (11, 11), (11, 30)):
        state = new_state(2, 6, d)
        gpu.attend_new(there(q), there(kv), heads, there(np.full(2, a), np.full(2, b)), 19, None, None, state, True)
        parts.append(state)
    state, out = new_state(2, 6, d), xp().zeros(q.shape, np.float32)
    gpu.merge_new(xp().stack(parts), state, 6)
    gpu.finish_new(state, out, 6)
    close(out, expected_of(q, kv, heads, [(np.arange(30), None)] * 2), 8)
