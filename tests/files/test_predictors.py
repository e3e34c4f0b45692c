"""Codebooks of what a prediction misses, on disk: as they were, as narrow as asked, or refused with the reason."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from astra_mpi.codec.ahead import plain_metric
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.predictor import Predictor, fit_predictor, inputs_before
from astra_mpi.errors import InputError
from astra_mpi.files.codecfile import check_codec, read_codebooks, rounded, write_codebooks
from astra_mpi.kernels import cpu
from helpers.fakes import llama_config, random_codec

CONFIG = llama_config(n_layers=4)
CODING = CodecConfig(
    site="normed", stages=2, codebook_size=16, encoder="subspace", predict="linear", inputs=1, awaited=(1, 3)
)


@pytest.fixture
def codec():
    return random_codec(CONFIG, CODING)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_read_back_as_written(tmp_path, codec, dtype):
    path = tmp_path / "codes.h5"
    write_codebooks(path, codec, "base", {}, dtype)
    found = read_codebooks(path, "base")
    check_codec(found, CONFIG, path)
    assert found.digest == rounded(codec, dtype).digest and found.config.awaited == (1, 3)
    assert (found.digest == codec.digest) == (dtype == "float32")
    assert [block.predictor and (block.predictor.rank, block.predictor.keep) for block in found.blocks] == [
        block.predictor and (block.predictor.rank, block.predictor.keep) for block in codec.blocks
    ]


def test_one_number_of_a_predictor_makes_other_codebooks(codec):
    for change in ({"keep": 0.5}, {"bias": codec.blocks[1].predictor.bias * 1.01}):
        blocks = (*codec.blocks[:1], replace(codec.blocks[1], predictor=replace(codec.blocks[1].predictor, **change)))
        assert Codec(codec.config, (*blocks, *codec.blocks[2:])).digest != codec.digest
    assert "predict" not in random_codec(CONFIG, replace(CODING, predict="none", inputs=0, awaited=())).config.as_dict()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda group: group.attrs.__delitem__("predict"), "inputs are for predict .linear."),
        (lambda group: group.attrs.__setitem__("awaited", [3, 1]), "ascending order"),
        (lambda group: group.attrs.__setitem__("awaited", [4]), "awaited block .4. of a model of 4 blocks"),
        (lambda group: group["2/predictor_bias"].__setitem__(0, 7), "damaged or edited"),
        (lambda group: group["1/predictor"].attrs.__setitem__("keep", 0.3), "damaged or edited"),
        (lambda group: group["1/predictor"].__setitem__((0, 0), np.inf), "NaN or infinite"),
        (lambda group: group.__delitem__("2/predictor_bias"), "needs a predictor of width"),
        (lambda group: group.__delitem__("3/predictor_out"), "a predictor has factors"),
        (lambda group: group.attrs.__setitem__("predict", "often"), "predict 'often' is unknown"),
        (lambda group: group.attrs.__setitem__("site", "kv"), "use site normed, not kv"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, codec, break_it, message):
    path = tmp_path / "codes.h5"
    write_codebooks(path, codec, "base", {})
    with h5py.File(path, "r+") as file:
        break_it(file["codec"])
    with pytest.raises(InputError, match=message):
        read_codebooks(path, "base")


def test_blocks_have_predictors_where_the_config_says_so(codec):
    with pytest.raises(InputError, match=r"codec block 0 has a predictor; .* needs none there"):
        Codec(replace(codec.config, awaited=()), codec.blocks[1:])
    with pytest.raises(InputError, match=r"codec block 1 has no predictor; .* needs one there"):
        Codec(codec.config, (codec.blocks[0], replace(codec.blocks[1], predictor=None), *codec.blocks[2:]))
    with pytest.raises(InputError, match="codec block 1 predicts from 1 inputs; its config says 2"):
        Codec(replace(codec.config, inputs=2), codec.blocks)
    with pytest.raises(InputError, match="inputs are for predict 'linear'"):
        replace(CODING, predict="next")
    with pytest.raises(InputError, match="awaited blocks are for predict"):
        replace(CODING, predict="none", inputs=0)
    with pytest.raises(InputError, match="differ in width"):
        replace(codec.blocks[1], predictor=Predictor((np.eye(3),), np.zeros(3)))


def test_a_fit_finds_the_map_and_how_much_of_the_state_to_keep():
    rng = np.random.default_rng(0)
    state = rng.normal(2, 1, (4000, 12)).astype(np.float32)
    low = np.outer(rng.normal(0, 1, 12), rng.normal(0, 1, 12))
    target = (0.7 * state + state @ low + 3 + rng.normal(0, 0.01, state.shape)).astype(np.float32)

    for rank in (1, 0):
        predictor = fit_predictor(state, target, rank, plain_metric(12))
        assert np.abs(predictor.predict(state, None, cpu) - target).max() < 0.1 + 0.7 * bool(rank)
        assert predictor.keep == 1 if rank == 0 else predictor.keep < 1.5
    alike = fit_predictor(state, (0.6 * state).astype(np.float32), 1, plain_metric(12))
    assert alike.keep == pytest.approx(0.6, abs=1e-3)


def test_a_fit_takes_what_the_state_lacks_from_the_inputs():
    rng = np.random.default_rng(0)
    rows, lengths = rng.normal(1, 1, (3000, 6)).astype(np.float32), np.array([1000, 0, 1999, 1])
    inputs = inputs_before(rows, lengths, 3)
    assert inputs_before(rows, lengths, 0) is None
    for n in (1, 2, 5, 8):  # also fewer tokens than inputs
        short = inputs_before(rows[:n], np.array([n]), 8)
        np.testing.assert_array_equal(short[-1], np.concatenate([rows[:n][::-1].ravel(), np.zeros((8 - n) * 6)]))
    start = 0
    for n in lengths:  # written as a loop
        for t in range(min(n, 5)):
            before = [rows[start + t - k] if t >= k else np.zeros(6) for k in range(3)]
            np.testing.assert_array_equal(inputs[start + t], np.concatenate(before))
        start += n
    state = rng.normal(0, 1, rows.shape).astype(np.float32)
    target = (0.5 * state + inputs @ rng.normal(0, 1, (18, 6)) - 2).astype(np.float32)
    whole = fit_predictor(state, target, 0, plain_metric(6), inputs)
    assert whole.n_inputs == 3 and whole.rank == 6
    assert np.abs(whole.predict(state, inputs, cpu) - target).max() < 0.02
    narrow = fit_predictor(state, target, 4, plain_metric(6), inputs)
    left = [((p.predict(state, inputs, cpu) - target) ** 2).mean() for p in (whole, narrow)]
    assert left[0] < left[1] < 0.3 * target.var() and narrow.factors[0].shape == (24, 4)
    for shape, width in (((15, 6), 6), ((0, 0), 0)):
        with pytest.raises(InputError, match="a predictor has factors"):
            Predictor((np.zeros(shape),), np.zeros(width))
