"""Codebooks in the metric of keys and values: what it measures, and that codes are the nearest ones in it."""

import subprocess
import sys

import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.calibrate import activations, fit_codec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.metric import RIDGE, keys_values_metric, pulled_back
from astra_mpi.codec.tables import Norm, Projection
from astra_mpi.commands.options import require_torch
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model, write_model
from astra_mpi.models import FAMILIES
from helpers.fakes import bert_config, gpt2_config, llama_config, model_file, random_basis, vit_config
from kernels import cpu

D = 24
CONFIGS = {"bert": bert_config, "gpt2": gpt2_config, "llama": llama_config, "vit": vit_config}


def astra(*arguments):
    command = [sys.executable, "-m", "astra_mpi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def weight(rng, d_kv=8):
    return rng.normal(size=(D, 2 * d_kv)).astype(np.float32)


def test_it_measures_the_change_of_keys_and_of_values():
    """Without a norm: relative to the size of either projection; the ridge adds plain distance."""
    rng = np.random.default_rng(0)
    w = weight(rng)
    w[:, :8] *= 30  # of keys: the scale of one does not hide the other
    metric = keys_values_metric(Projection(None, w, np.zeros(16)))
    e = rng.normal(size=(9, D))
    keys, values = np.split(w.astype(np.float64), 2, axis=1)
    change = ((e @ keys) ** 2).sum(1) / (keys**2).sum() + ((e @ values) ** 2).sum(1) / (values**2).sum()
    expected = change * D / 2 + RIDGE * (e**2).sum(1)  # the mean of the weights is one
    np.testing.assert_allclose(((e @ metric) ** 2).sum(1), expected, rtol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_a_norm_is_part_of_it(centred):
    """To first order: what a small change does behind the norm of a vector with mean 0 and variance 1."""
    rng = np.random.default_rng(1)
    gamma, w = rng.uniform(0.5, 2, D).astype(np.float32), weight(rng)
    metric = keys_values_metric(Projection(Norm(centred, gamma, None, 1e-6), w, np.zeros(16)))
    shift = np.ones((1, D))
    lost = ((shift @ metric) ** 2).sum()
    assert (lost < 1.01 * RIDGE * D) == centred  # LayerNorm takes a common offset away
    e = rng.normal(size=(5, D))
    e -= e.mean(axis=1, keepdims=True) if centred else 0
    a = gamma[:, None] * w.astype(np.float64)
    a -= a.mean(axis=0) if centred else 0
    keys, values = np.split(a, 2, axis=1)
    change = ((e @ keys) ** 2).sum(1) / (keys**2).sum() + ((e @ values) ** 2).sum(1) / (values**2).sum()
    np.testing.assert_allclose(((e @ metric) ** 2).sum(1), change * D / 2 + RIDGE * (e**2).sum(1), rtol=1e-6)


@pytest.mark.parametrize("columns", [None, 7])
def test_codes_are_the_nearest_in_the_metric(columns):
    rng = np.random.default_rng(2)
    metric = keys_values_metric(Projection(None, weight(rng), np.zeros(16)))
    basis = None if columns is None else random_basis(rng, D, columns)
    inner = Codebook("residual", rng.normal(size=(3, 20, D)).astype(np.float32), D, basis)
    book = pulled_back(inner, metric)
    x = rng.normal(size=(50, D)).astype(np.float32)
    codes = book.encode(x, cpu)
    same = (codes == inner.encode(x @ metric.astype(np.float32), cpu)).mean()
    assert same > 0.95  # but for near ties
    np.testing.assert_allclose(book.decode(codes, cpu) @ metric, inner.decode(codes, cpu), atol=1e-4)
    assert book.basis.shape == (D, columns or D)


@pytest.mark.parametrize("encoder", ["auto", "exact", "subspace"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "vit"])
def test_keys_and_values_come_out_nearer(family, encoder):
    """Those of activations that were not fitted to, where directions matter unequally."""
    config = CONFIGS[family](d_model=48, d_ff=40)
    file = model_file(config, seed=5)
    scale = np.logspace(0, -2, 48, dtype=np.float32)  # the last dimensions hardly change keys and values
    for name in file.weights:
        if name.endswith((".k.weight", ".v.weight")):
            file.weights[name] = file.weights[name] * scale[:, None]
    n_tokens = None if family == "vit" else 12
    batches = [random_batch(config, 16, n_tokens, seed=i) for i in range(20)]
    site = FAMILIES[family].default_site
    coding, errors = CodecConfig(site, stages=2, codebook_size=16, encoder=encoder), {}
    for metric in ("plain", "keys-values"):
        codec = fit_codec(file, batches[:-4], coding, n_samples=900, metric=metric)
        model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
        for i, x in enumerate(activations(model, batches[-4:], site, 10**6)):
            block = model.strategy.blocks[i]
            found = codec.blocks[i].decode(codec.blocks[i].encode(x, cpu), cpu)
            exact, far = (block.keys_values(rows).copy() for rows in (x, found))
            errors.setdefault(metric, []).append(float(np.square(far - exact).mean()))
    assert np.sum(errors["keys-values"]) < 0.9 * np.sum(errors["plain"])


def test_where_there_is_none():
    """Keys and values themselves, and groups, are searched by distance."""
    batch = [random_batch(llama_config(), 8, 20, seed=0)]
    file = model_file(llama_config())
    for config in (
        CodecConfig(site="kv", stages=1, codebook_size=8, encoder="exact"),
        CodecConfig(kind="grouped", groups=2, codebook_size=8),
    ):
        a, b = (fit_codec(file, batch, config, n_samples=64, metric=metric) for metric in ("plain", "keys-values"))
        assert a.digest == b.digest and a.config.encoder == "exact"
    with pytest.raises(InputError, match="needs gradients"):
        fit_codec(file, batch, CodecConfig(), metric="output")
    with pytest.raises(InputError, match="use one of keys-values, output, plain"):
        fit_codec(file, batch, CodecConfig(), metric="euclid")


def test_the_command(tmp_path):
    write_model(tmp_path / "m.h5", model_file(bert_config()))
    np.save(tmp_path / "ids.npy", np.random.default_rng(0).integers(0, 40, (40, 12)))
    made = {}
    for metric in ("plain", "keys-values", None):
        options = ["--metric", metric] if metric else []
        given = ["--data", tmp_path / "ids.npy", "-o", tmp_path / "a.h5", "--stages", 1, "--codebook-size", 8, *options]
        assert astra("calibrate", tmp_path / "m.h5", *given).returncode == 0
        made[metric] = read_model(tmp_path / "a.h5").codec.digest
    assert made[None] == made["keys-values"] != made["plain"]
    refused = astra("calibrate", tmp_path / "m.h5", *given, "--metric", "angle")
    assert (
        refused.returncode == 2 and "metric 'angle' is unknown; use one of keys-values, output, plain" in refused.stderr
    )


def test_gradients_need_pytorch_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"--metric output needs PyTorch; pip install 'astra-mpi\[train\]'"):
        require_torch("--metric output")
