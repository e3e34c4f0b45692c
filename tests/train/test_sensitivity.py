"""What gradients say of an error is what the error changes in the answer."""

import numpy as np
import pytest

from astra_mpi.calibrate.emulated import Change, Emulated
from astra_mpi.cli import main
from astra_mpi.commands.options import stages_of
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import read_model, write_model
from helpers.fakes import bert_config, llama_config, model_file

pytest.importorskip("torch")

SINKS, EPSILON = 1, 0.02


class _Perturbed:
    """Adds an error with a sign of its own to each token, and to keys and values apart: their changes add up."""

    def __init__(self, block, error, widths, rng):
        self.block, self.rng = block, rng
        signs = rng.choice([-1.0, 1.0], size=len(widths))
        self.error = error * np.repeat(signs, widths)

    def __call__(self, i, x):
        if i != self.block:
            return x
        signs = self.rng.choice([-1.0, 1.0], size=(len(x), 1))
        return x + (EPSILON * signs * self.error).astype(np.float32)


@pytest.mark.parametrize("site", ["normed", "kv"])
def test_small_errors_change_a_decoders_answer_as_much_as_said(site):
    from mpi4py import MPI

    from astra_mpi.train import sensitivity

    config = llama_config(n_layers=3, vocab_size=13)
    file = model_file(config, None)
    inputs, _ = random_batch(config, 4, 16, seed=1)
    draws = [sensitivity.weighings(file, [(inputs, None)], site, SINKS, seed) for seed in range(60)]
    emulated = Emulated(
        Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF)), inputs, None, site, sensitivity.SLICES, SINKS
    )
    change = Change(emulated, emulated.passed(lambda i, x: x, emulated.rows))
    n_coded, rng = emulated.n_tokens - SINKS * len(inputs), np.random.default_rng(0)
    for block in (0, 2):
        parts = [np.mean([draw[block][part] for draw in draws], axis=0) for part in range(len(draws[0][block]))]
        widths = [len(part) for part in parts]
        error = rng.normal(size=sum(widths))
        pieces = np.split(error, np.cumsum(widths)[:-1])
        said = sum(e @ part @ e for e, part in zip(pieces, parts, strict=True)) * EPSILON**2 / 2
        found = []
        for _ in range(60):  # of tokens with signs of their own, whose changes add up
            see = _Perturbed(block, error, widths, rng)
            found.append(change(emulated.passed(see, emulated.rows)))
        assert np.mean(found) * len(emulated.rows) / n_coded == pytest.approx(said, rel=0.35)


def test_weighings_are_the_same_for_a_seed_and_positive_definite_enough():
    from astra_mpi.train import sensitivity

    config = bert_config(n_layers=2)
    file = model_file(config, None)
    inputs, mask = random_batch(config, 5, 12, seed=1, ragged=True)
    once, again = (sensitivity.weighings(file, [(inputs, mask)], "hidden", 0, 3) for _ in range(2))
    for (one,), (same,) in zip(once, again, strict=True):
        np.testing.assert_array_equal(one, same)
        assert np.linalg.eigvalsh(one).min() > -1e-6 * np.trace(one)
        assert np.trace(one) > 0


def test_the_command_allots_stages_and_fits_in_the_metric(tmp_path, capsys):
    write_model(tmp_path / "m.h5", model_file(llama_config(n_layers=4), None))
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 40, (16, 24)))
    made = {}
    for metric in ("output", "keys-values"):
        target = tmp_path / f"{metric}.h5"
        options = ["--predict", "linear", "--codebook-size", "8", "--bits", "9", "--sinks", "1", "--metric", metric]
        given = ["--data", str(tmp_path / "ids.npy"), "-o", str(target), "--samples", "300", *options]
        assert main(["calibrate", str(tmp_path / "m.h5"), *given]) == 0
        made[metric] = read_model(target).codec
        stages = made[metric].config.stages
        assert len(stages) == 4 and stages[0] == 0 and 0 < sum(stages) * 3 <= 9 * 3
    assert made["output"].digest != made["keys-values"].digest
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("stages of blocks: ")]
    assert stages_of(told[-1].partition(": ")[2]) == stages
