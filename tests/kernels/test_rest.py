"""All that follows attention in one call, against the calls that it stands for."""

from dataclasses import replace

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.device.backend import get_backend
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.kernels import cpu
from astra_mpi.kernels.cpu.dense.rest import after_attention
from astra_mpi.kernels.cpu.dense.tile import HAS_TILES
from astra_mpi.kernels.rest import Rest
from helpers.fakes import gpt2_config, model_file

pytestmark = pytest.mark.skipif(not HAS_TILES, reason="this processor has no tiles of float32")


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def rest(e, d, f, activation="gelu", rms=False, biased=True):
    weights = normal(e, d) / np.sqrt(e), normal(d, f, seed=1) / np.sqrt(d), normal(f, d, seed=2) / np.sqrt(f)
    o, fc1, fc2 = (weight.astype(np.float32) for weight in weights)
    outer = (normal(d, seed=3), normal(d, seed=6)) if biased else (np.zeros(d, np.float32),) * 2
    norm = normal(d, seed=4), None if rms else normal(d, seed=5), 1e-5
    return Rest(o, outer[0], *norm, fc1, normal(f, seed=7), activation, fc2, outer[1])


def step_by_step(x, attended, of):
    y, normed = cpu.dense(attended, of.o, np.empty_like(x)), np.empty_like(x)
    if of.norm_bias is None:
        cpu.add_rms_norm(x, y, of.o_bias, of.norm, of.eps, normed)
    else:
        cpu.add_layer_norm(x, y, of.o_bias, of.norm, of.norm_bias, of.eps, normed)
    inner = cpu.dense(normed, of.fc1, np.empty((len(x), of.fc1.shape[1]), np.float32), of.fc1_bias, of.activation)
    return cpu.dense(inner, of.fc2, x, of.fc2_bias, add=True)


@pytest.mark.parametrize(
    ("n", "e", "d", "f"), [(8, 32, 32, 64), (49, 48, 40, 72), (50, 192, 192, 768), (11, 7, 9, 33), (64, 384, 384, 1040)]
)
@pytest.mark.parametrize(("activation", "rms", "biased"), [("gelu", False, True), ("silu", True, False)])
def test_it_is_what_its_parts_are(n, e, d, f, activation, rms, biased):
    of, x, attended = (
        rest(e, d, f, activation, rms, biased),
        normal(n, d, seed=8),
        normal(n, e + 16, seed=9)[:, 3 : e + 3],
    )
    expected, room = step_by_step(x.copy(), attended, of), np.empty((2, n * max(d, f)), np.float32)
    normed, inner = room[0, : n * d].reshape(n, d), room[1, : n * f].reshape(n, f)
    assert after_attention(x, attended, of, normed, inner)
    assert np.array_equal(x, expected)  # to the bit: with more threads layers are computed one by one


def test_bits_do_not_depend_on_threads():
    of, attended, whole = rest(192, 192, 768), normal(50, 192, seed=9), normal(50, 192, seed=8)
    one, scratch = whole.copy(), (np.empty((50, 192), np.float32), np.empty((50, 768), np.float32))
    assert after_attention(one, attended, of, *scratch)
    set_threads(2)
    try:
        assert np.array_equal(step_by_step(whole.copy(), attended, of), one)
    finally:
        set_threads(1)


def test_it_leaves_what_others_compute_faster():
    """Rows for BLAS, rows that lie apart and layers for several threads are not touched."""
    of, wide = rest(32, 32, 64), normal(200, 64)
    scratch = np.empty((200, 32), np.float32), np.empty((200, 64), np.float32)
    few = [array[:16] for array in scratch]
    refused = [(normal(600, 32), 600), (normal(4, 32), 4), (wide[:16, :32], 16)]
    for x, n in refused:
        room = [np.empty((n, array.shape[1]), np.float32) for array in scratch]
        before = x.copy()
        assert not after_attention(x, normal(n, 32, seed=1), of, *room) and np.array_equal(x, before)
    x = normal(16, 32)
    set_threads(2)
    try:
        assert not after_attention(x, normal(16, 32, seed=1), of, *few)
    finally:
        set_threads(1)
    assert after_attention(x, normal(16, 32, seed=1), of, *few)


def test_it_refuses_what_it_would_read_wrong():
    of, x = rest(32, 32, 64), normal(16, 32)
    scratch = np.empty((16, 32), np.float32), np.empty((16, 64), np.float32)
    x.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        after_attention(x, normal(16, 32, seed=1), of, *scratch)
    assert not after_attention(x.copy(), normal(16, 8, seed=1), of, *scratch)
    wrong = {
        "norm": of.norm.astype(np.float64),
        "o_bias": normal(64)[::2],
        "fc1_bias": normal(32),
        "fc2": normal(32, 32),
    }
    for name, array in wrong.items():
        with pytest.raises(TypeError, match=r"float32 are needed|do not follow"):
            replace(of, **{name: array})


def test_a_pass_takes_it_in_every_block_and_answers_the_same(monkeypatch):
    def answer(ids):
        model = Model(model_file(config), MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
        model.use("single")
        return model(ids)

    config, calls = gpt2_config(d_model=48, n_heads=4, n_kv_heads=4, d_ff=80, vocab_size=61), []
    ids = np.random.default_rng(0).integers(0, 61, (2, 9))
    monkeypatch.setattr(cpu, "after_attention", lambda *given: calls.append(after_attention(*given)) or calls[-1])
    with_it = answer(ids)
    assert calls == [True] * config.n_layers
    monkeypatch.delattr(cpu, "after_attention")
    assert np.array_equal(answer(ids), with_it)
