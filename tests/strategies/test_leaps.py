"""States over blocks without codes: made in blocks with codes only, and with the same answers."""

from dataclasses import replace

import numpy as np
import pytest
from test_predicted import assert_same_states

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.leaps import composed, leaps_of, moved_on
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.kernels import cpu
from astra_mpi.oracle.verify import verify
from helpers.fakes import llama_config, model_file, random_predictor

mpi = pytest.mark.mpi

CONFIG = llama_config(n_layers=6)
GAPS = CodecConfig(site="normed", stages=(0, 2, 0, 0, 3, 0), codebook_size=9, predict="linear", inputs=1)


def whole_maps(inputs=1):
    """A model file whose maps are whole matrices, and whose codebooks add something where codes have no bits."""
    file, rng = model_file(CONFIG, replace(GAPS, inputs=inputs)), np.random.default_rng(3)
    blocks = []
    for i, block in enumerate(file.codec.blocks):
        predictor = block.predictor
        if i:
            factor = np.linalg.multi_dot([*predictor.factors, np.eye(predictor.width)])
            predictor = replace(predictor, factors=(factor,), bias=predictor.bias + 0.1)
        (book,) = block.codebooks
        entries = book.entries if book.code_bits.any() else rng.standard_normal(book.entries.shape).astype(np.float32)
        blocks.append(replace(block, predictor=predictor, codebooks=(replace(book, entries=entries),)))
    return replace(file, codec=Codec(file.codec.config, tuple(blocks)))


@pytest.mark.parametrize("inputs", [0, 1, 2])
def test_two_maps_as_one(inputs):
    rng, width = np.random.default_rng(inputs), 24
    first, then = (
        replace(one, factors=(np.linalg.multi_dot([*one.factors, np.eye(width)]),))
        for one in (random_predictor(rng, width, i, inputs) for i in (1, 2))
    )
    first = replace(first, keep=0.7)
    state, mean = rng.standard_normal((5, width)).astype(np.float32), rng.standard_normal(width).astype(np.float32)
    beside = rng.standard_normal((5, inputs * width)).astype(np.float32) if inputs else None
    between = first.predict(state, beside, cpu) + mean
    both = composed(moved_on(first, mean), then)
    assert both.keep == pytest.approx(0.7 * then.keep)
    np.testing.assert_allclose(
        both.predict(state, beside, cpu), then.predict(between, beside, cpu), rtol=2e-3, atol=2e-3 * abs(between).max()
    )


@mpi
@pytest.mark.parametrize("strategy", ["astra", "astra:late"])
@pytest.mark.parametrize(("inputs", "compute"), [(1, "float32"), (0, "float32"), (1, "bfloat16"), (2, "float32")])
def test_answers_are_the_oracles(comm, strategy, inputs, compute):
    """More than one input: every block makes its states."""
    model = Model(whole_maps(inputs), comm, get_backend("numpy", comm, compute=compute))
    batch, mask = random_batch(CONFIG, 3, 19, seed=1, ragged=True)
    checks = verify(model, batch, mask, [strategy])
    assert all(check.passed and "skipped" not in check.reason for check in checks), checks
    comm.Barrier()
    model.use(strategy)
    model(batch, mask)
    assert set(model.strategy.leaps.rows) == (set() if inputs > 1 else {2, 3, 5})
    if comm.size > 1 and strategy == "astra":
        assert_same_states(model)


@mpi
def test_maps_of_low_rank_stay_as_they_are(comm):
    model = Model(model_file(CONFIG, GAPS), comm, get_backend("numpy", comm))
    assert not leaps_of(model.codec)
    model.use("astra")
    assert not model.strategy.leaps.rows
