"""`astra-mpi train` from codebooks of calibrate: predicted, scalar and graded codes on a frozen model."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.cli import main
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.codecfile import read_codebooks, write_codebooks
from astra_mpi.files.modelfile import read_model
from astra_mpi.oracle.verify import verify
from astra_mpi.train.deck import load_train_deck
from astra_mpi.train.log import read_log
from astra_mpi.train.loop import Run
from helpers.fakes import random_codec
from helpers.training import SMALL, write_deck, write_small

NORMED = dict(site="normed", predict="linear", inputs=1, codebook_size=16)
CODECS = {
    "bert": CodecConfig(**NORMED, stages=(0, 2)),
    "gpt2": CodecConfig(**NORMED, stages=2, near=1, near_stages=2, sinks=1),
    "scalar": CodecConfig(site="kv", kind="scalar", vector_bits=30, codebook_size=16, sinks=1),
}


def deck_for(folder, family, name, **changes):
    """A deck that goes on from codebooks at random."""
    codec, family = CODECS[family], "gpt2" if family == "scalar" else family
    sections = write_small(folder, family)
    model = read_model(sections["model"]["path"])
    write_codebooks(folder / "start.h5", random_codec(SMALL[family], codec), model.digest, {})
    sections["model"]["codebooks"] = str(folder / "start.h5")
    sections["codec"] = {"init": "model"}
    sections["train"] = {"learn": "codebooks", "loss": "distill", "codebook_lr": 1e-2, "predictor_lr": 1e-2}
    sections["output"] = {"codebooks_only": True}
    return write_deck(folder / f"{name}.toml", sections, **changes)


@pytest.mark.parametrize("family", CODECS)
def test_learns_and_continues_with_the_same_bits(tmp_path, family):
    """The answer comes closer to the exact one, all that is meant to learns, and nothing else; a run in two parts, with
    blocks computed again, ends as one in one part."""
    ends = {}
    for name in ("whole", "parts"):
        folder = tmp_path / name
        folder.mkdir()
        deck = load_train_deck(deck_for(folder, family, name, train_steps=24, train_checkpoint_every=12))
        deck = replace(deck, train=replace(deck.train, recompute=name == "parts"))
        if name == "parts":
            first = Run(deck, MPI.COMM_SELF, 1, "deck.toml")
            for step in range(12):
                first._step(step, None)
            first._save(12)
        Run(deck, MPI.COMM_SELF, 1, "deck.toml")()
        with h5py.File(deck.beside(".checkpoint.h5")) as file:
            ends[name] = {key: item[()] for key, item in file["state"].items()}
    for key, array in ends["whole"].items():
        np.testing.assert_allclose(array, ends["parts"][key], rtol=1e-4, atol=1e-6, err_msg=key)
    log = [record for record in read_log(tmp_path / "whole/whole.jsonl") if "wall_s" in record and "loss" not in record]
    better = [log[n]["cosine" if family == "bert" else "divergence"] for n in (0, -1)]
    assert better[1] > better[0] if family == "bert" else better[1] < 0.8 * better[0], better
    digest = read_model(tmp_path / "whole/model.h5").digest
    before, after = (read_codebooks(tmp_path / "whole" / name, digest) for name in ("start.h5", "whole.h5"))
    assert before.config == after.config
    for i, (a, b) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        for p, q in zip(a.codebooks, b.codebooks, strict=True):
            silent = before.config.predicts and i == 0
            assert np.array_equal(p.entries, q.entries) == silent
            if p.ordinary is not None:
                assert not q.entries[p.ordinary :, -1].any() and not np.array_equal(p.entries[-1], q.entries[-1])
            if p.transform is not None:
                kept = [np.array_equal(x, y) for x, y in zip(p.transform, q.transform, strict=True)]
                assert kept == [True, False, False] and not np.array_equal(p.head.entries, q.head.entries)
        if a.predictor is not None:
            pairs = zip(a.predictor.arrays, b.predictor.arrays, strict=True)
            assert [np.array_equal(x, y) for x, y in pairs] == [False] * (len(a.predictor.arrays) - 1) + [True]


@pytest.mark.mpi
@pytest.mark.parametrize("family", CODECS)
def test_trained_on_ranks_equals_the_oracle(comm, mpi_tmp_path, family):
    """Ranks train together as one process does; the engine loads what they wrote, and agrees with the oracle."""
    path = mpi_tmp_path / "deck.toml"
    if comm.Get_rank() == 0:
        deck_for(mpi_tmp_path, family, "deck", train_steps=3)
    comm.Barrier()
    deck = load_train_deck(path)
    Run(deck, comm, 1, "deck.toml")()
    alone = replace(deck, output=replace(deck.output, path=mpi_tmp_path / f"alone{comm.Get_rank()}.h5"))
    Run(alone, MPI.COMM_SELF, 1, "deck.toml")()
    file = read_model(deck.model.path)
    together, one = (read_codebooks(found.output.path, file.digest) for found in (deck, alone))
    for a, b in zip(together.blocks, one.blocks, strict=True):
        for p, q in zip(a.codebooks, b.codebooks, strict=True):
            np.testing.assert_allclose(p.entries, q.entries, atol=2e-3 * np.abs(q.entries).max())
    model = Model(replace(file, codec=together), comm, get_backend("numpy", comm))
    inputs, mask = random_batch(file.config, 3, 13, seed=1, ragged=True)
    checks = verify(model, inputs, mask, ["astra"])
    assert all(check.passed and "skipped" not in check.reason for check in checks), checks
    comm.Barrier()


@pytest.mark.mpi
def test_a_model_learns_with_late_codes(comm, mpi_tmp_path):
    """All weights change; what ranks answer with late codes comes closer to what it was to be, and is the oracle's."""
    path = mpi_tmp_path / "deck.toml"
    late = dict(codec_codes="late", train_learn="all", output_codebooks_only=False)
    if comm.Get_rank() == 0:
        deck_for(mpi_tmp_path, "bert", "deck", train_steps=12, **late)
    comm.Barrier()
    deck = load_train_deck(path)
    Run(deck, comm, 1, "deck.toml")()
    log = [record["cosine"] for record in read_log(deck.beside(".jsonl")) if "cosine" in record]
    assert log[-1] > log[0], log
    before, after = read_model(deck.model.path), read_model(deck.output.path)
    assert not any(np.array_equal(before.weights[name], after.weights[name]) for name in ("blocks.1.k.weight",))
    model = Model(after, comm, get_backend("numpy", comm))
    checks = verify(model, *random_batch(after.config, 3, 13, seed=1, ragged=True), ["astra:late"])
    assert all(check.passed and "skipped" not in check.reason for check in checks), checks
    comm.Barrier()


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("scalar", {"codec_codes": "late"}, ("codec.codes", "predict linear")),
        ("gpt2", {"codec_update": "ema"}, ("predicted codes", "codec.update")),
        ("scalar", {"codec_revive": 0.02}, ("kind 'scalar'", "codec.revive")),
        ("scalar", {"codec_noise": 1.0}, ("kind 'scalar'", "codec.noise")),
    ],
)
def test_decks_that_cannot_be_trained(tmp_path, capsys, family, changes, words):
    assert main(["train", str(deck_for(tmp_path, family, "deck", **changes))]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("astra-mpi:")]
    assert all(word in line for word in words), line
