"""calibrate finds attention sinks that were planted, leaves them out of codebooks, and records how many they are."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from astra_mpi.calibrate import fit_codec, fitting
from astra_mpi.calibrate.sinks import measured
from astra_mpi.cli import main
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.errors import InputError
from astra_mpi.files.codecfile import read_codebooks, write_codebooks
from astra_mpi.files.modelfile import read_model, write_model
from astra_mpi.planner.inputs import read_outline
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, random_codec

LARGE = 50.0  # of a sink in the residual stream; others are of order 1


def with_sinks(places, token=None):
    """GPT-2 whose tokens at these places, or this token, are large in one direction, that all queries look for."""
    config = gpt2_config()
    file = model_file(config)
    weights = {name: np.array(weight) for name, weight in file.weights.items()}
    rng = np.random.default_rng(0)
    direction, wanted = rng.normal(size=config.d_model), rng.choice([-1.0, 1.0], config.d_kv)
    direction = (direction - direction.mean()) / np.linalg.norm(direction - direction.mean())
    weights["embed.position"][list(places)] = LARGE * direction
    if token is not None:
        weights["embed.word"][token] = LARGE * direction
    for i in range(config.n_layers):
        for name, value in (("norm1.weight", 1.0), ("norm1.bias", 0.0), ("q.bias", wanted)):
            weights[f"blocks.{i}.{name}"][:] = value
        weights[f"blocks.{i}.k.weight"] += np.outer(direction, wanted)
    return replace(file, weights=weights)


def batches(config, n=6, n_tokens=40):
    return [random_batch(config, 8, n_tokens, seed=i, ragged=True) for i in range(n)]


@pytest.mark.mpi
@pytest.mark.parametrize(("places", "n_sinks"), [((), 0), ((0,), 1), ((0, 2), 3), ((7,), 8), ((9,), 0)])
def test_planted_sinks_are_found_and_are_no_samples(comm, monkeypatch, places, n_sinks):
    """All tokens up to the last that stands out, the same on all ranks; later ones are not looked at."""
    file, largest = with_sinks(places), []
    fit = lambda x, *more: largest.append(float(np.abs(x).max())) or fit_codebook(x, *more)  # noqa: E731
    monkeypatch.setattr(fitting, "fit_codebook", fit)
    coding = CodecConfig("hidden", stages=1, codebook_size=8)
    options = dict(comm=comm, n_samples=500, metric="plain", find_sinks=True)
    codec = fit_codec(file, batches(file.config), coding, **options)
    found = comm.bcast(None if codec is None else codec.config.sinks)
    assert found == n_sinks
    if places != (9,) and largest:
        assert max(largest) < LARGE / 4


def test_a_first_token_that_may_come_twice_is_two_sinks():
    file, token = with_sinks((), token=5), 5
    texts = []
    for ids, mask in batches(file.config):
        ids = np.where(ids == token, token + 1, ids)
        ids[:, 0] = token
        texts.append((ids, mask))
    codec = fit_codec(file, texts, CodecConfig(stages=1, codebook_size=8), n_samples=500, find_sinks=True)
    assert codec.config.sinks == 2


def test_what_stands_out():
    assert measured(np.array([0.3, 0.001, 0.02, *[0.001] * 5, 0.001])) == 3
    assert measured(np.array([0.3, *[0.019] * 7, 0.001])) == 1  # a share too small to matter
    assert measured(np.array([*[0.05] * 8, 0.01])) == 0  # a short text: every token has as much
    assert measured(np.zeros(9)) == 0


@pytest.mark.parametrize("config", [bert_config(), llama_config(n_layers=1, windows=(6,))])
def test_none_are_looked_for(config):
    """In encoders, whose first tokens see all others, and where every block has a window."""
    codec = fit_codec(
        model_file(config), batches(config, 2, 36), CodecConfig(stages=1, codebook_size=4), find_sinks=True
    )
    assert codec.config.sinks == 0 and "sinks" not in codec.config.as_dict()


def test_encoders_refuse_them():
    with pytest.raises(InputError, match="sinks = 2 is for decoders"):
        fit_codec(model_file(bert_config()), batches(bert_config(), 1), CodecConfig(sinks=2))
    with pytest.raises(InputError, match=r"sinks = 9 is outside 0\.\.8"):
        CodecConfig(sinks=9)


def test_files_keep_them_and_those_without_stay_as_they_were(tmp_path):
    config = gpt2_config()
    plain, exact = (random_codec(config, CodecConfig(stages=2, codebook_size=4, sinks=n)) for n in (0, 3))
    assert plain.digest != exact.digest and list(plain.config.as_dict()) == [
        "site", "kind", "codebook_size", "groups", "stages", "encoder",
    ]  # fmt: skip
    for name, codec in (("plain", plain), ("exact", exact)):
        write_codebooks(tmp_path / name, codec, "abc", {})
        back = read_codebooks(tmp_path / name, "abc")
        assert (back.config.sinks, back.digest) == (codec.config.sinks, codec.digest)
    with h5py.File(tmp_path / "plain") as a, h5py.File(tmp_path / "exact") as b:
        assert "sinks" not in a["codec"].attrs and b["codec"].attrs["sinks"] == 3
        assert a["codec"].attrs["checksum"] != b["codec"].attrs["checksum"]
    write_model(tmp_path / "model.h5", replace(model_file(config), codec=exact))
    assert read_outline(str(tmp_path / "model.h5"), None)[1].codec.sinks == 3
    with h5py.File(tmp_path / "exact", "r+") as file:
        file["codec"].attrs["sinks"] = 2
    with pytest.raises(InputError, match="codec is damaged"):
        read_codebooks(tmp_path / "exact", "abc")


def test_the_command(tmp_path, capsys):
    path, data = tmp_path / "model.h5", tmp_path / "ids.npy"
    write_model(path, replace(with_sinks((0,)), codec=None))
    np.save(data, np.concatenate([random_batch(gpt2_config(), 8, 40, seed=i)[0] for i in range(4)]).astype(np.int32))
    command = ["calibrate", str(path), "--data", str(data), "--samples", "256", "--codebook-size", "4", "--stages", "1"]
    for sinks, n in (([], 1), (["--sinks", "0"], 0), (["--sinks", "4"], 4)):
        out = tmp_path / f"{n}.h5"
        assert main([*command, "-o", str(out), *sinks]) == 0
        assert read_model(out).codec.config.sinks == n
        assert (f"{n} first token" in capsys.readouterr().out) == (n > 0)
    for wrong in ("9", "-1", "many"):
        assert main([*command, "-o", str(tmp_path / "x.h5"), f"--sinks={wrong}"]) == 2
        assert "sinks" in capsys.readouterr().err
