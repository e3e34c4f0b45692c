"""Blocks and heads with products in bfloat16 and int8: every family and exact strategy against the specification."""

import dataclasses
import types

import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import Backend, get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import write_model
from astra_mpi.kernels import reference_products as reference
from astra_mpi.kernels.cpu import _features, bfloat16, int8
from astra_mpi.kernels.cpu.products.layout import unpack
from helpers.architectures import on_ranks
from helpers.fakes import IMAGE_PARTS, bert_config, gpt2_config, llama_config, model_file, vit_config

CONFIGS = {
    "vit": vit_config(),
    "bert": bert_config(),
    "bert-wide": bert_config(d_model=64, n_heads=2, n_kv_heads=2, d_ff=70),  # keys begin at a pair of strips
    "gpt2": gpt2_config(),
    "llama": llama_config(),
}
CONFIGS |= {f"vit-{name}": vit_config(**IMAGE_PARTS[name]) for name in ("registers", "distilled", "probe")}
#: norms after the sums and before them, of heads, parallel attention
CONFIGS |= {name: on_ranks()[name][0] for name in ("gemma2", "olmo2", "qwen3", "gpt_neox", "opt")}
ALONE, TOGETHER = ("single",), ("sp", "sp:kv", "tp", "bp", "bp:sp")
KERNELS = {"bfloat16": bfloat16, "int8": int8}
#: of the largest number of an answer: a rounding that falls to the other side moves a number by a unit of its type
NEAR = {"bfloat16": 2.0**-8, "int8": 1 / 127}


def layer(x, strips, out, bias=None, activation="", gate=None, gate_bias=None, add=False):
    """`kernels.layer` as the specification has it, with weights that are rounded already."""

    def multiply(weights):
        if weights.kind == "bfloat16":
            rows = reference.round_bfloat16(x)
        else:
            rows = np.prod(reference.quantise_rows(x), axis=0, dtype=np.float64)
        return (rows.astype(np.float64) @ unpack(weights)).astype(np.float32)

    y = multiply(strips)
    if gate is not None:
        reference.activate_gated(y, bias, multiply(gate), gate_bias, activation)
    elif activation:
        reference.activate(y, bias, activation)
    elif bias is not None:
        y += bias
    out[...] = out + y if add else y
    return out


def two_layers(x, inner, inner_bias, activation, gate, gate_bias, outer, outer_bias, out, add=False):
    between = layer(x, inner, np.empty((len(x), inner.n), np.float32), inner_bias, activation, gate, gate_bias)
    return layer(between, outer, out, outer_bias, add=add)


def specified(kind):
    """The kernels with products as the specification has them."""
    kernels = types.ModuleType(f"specified {kind}")
    kernels.__dict__.update(KERNELS[kind].__dict__, layer=layer, two_layers=two_layers)
    return Backend("numpy", np, kernels)


@pytest.mark.mpi
@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_the_specification(comm, name, kind):
    if _features.path(kind).name == "widened":
        pytest.skip(f"no instruction for {kind}")
    if comm.Get_size() > 3:
        pytest.skip("asked on 1, 2 and 3 ranks")
    config = CONFIGS[name]
    file = model_file(config)
    inputs, mask = random_batch(config, 3, None if name.startswith("vit") else 12, seed=1, ragged=True)
    ours, theirs, wide = (
        Model(file, comm, backend)
        for backend in (get_backend("numpy", comm, compute=kind), specified(kind), get_backend("numpy", comm))
    )
    for strategy in ALONE if comm.Get_size() == 1 else TOGETHER:
        if ours.obstacle(strategy) is None:
            answers = []
            for model in (ours, theirs, wide):
                model.use(strategy)
                answers.append(model(inputs, mask))
            size = np.abs(answers[2]).max()
            assert np.abs(answers[0] - answers[1]).max() <= NEAR[kind] * size
            assert 0 < np.abs(answers[0] - answers[2]).max() <= 16 * NEAR[kind] * size
    assert ours.report["choices"]["compute"] == kind
    assert ours.report["choices"]["products"] == _features.path(kind).told


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", KERNELS)
def test_what_is_packed_is_counted_and_stored_weights_are_read_once(tmp_path, kind, stored):
    """From a file, whose tied word embedding is head and rows; two sizes of 32 leave no padding."""
    config = llama_config(d_model=64, n_heads=4, n_kv_heads=2, d_ff=128, vocab_size=96, tied=True)
    path = str(tmp_path / "model.h5")
    write_model(path, dataclasses.replace(model_file(config, dtype=stored), codec=None))
    model = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single", compute=kind)
    plain = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single")
    inputs, mask = random_batch(config, 2, 9, seed=1, ragged=True)
    got, want = model(inputs, mask), plain(inputs, mask)
    assert 0 < np.abs(got - want).max() <= 16 * NEAR[kind] * np.abs(want).max()
    if _features.path(kind).name == "widened":
        return
    widths = {"q": 64, "k": 32, "v": 32, "o": 64, "fc1": 128, "gate": 128, "fc2": 64}
    inputs_of = {"fc2": 128}
    bytes_of = {"bfloat16": 2, "int8": 1}[kind]
    layers = sum(n * (bytes_of * inputs_of.get(name, 64) + 4) for name, n in widths.items())
    head = 96 * (bytes_of * 64 + 4)
    vectors = sum(4 * 64 for _ in ("norm1", "norm2"))
    word = plain.weights["embed.word"].nbytes
    assert model.report["weight_bytes"] == [2 * (layers + vectors) + head + word + 4 * 64]


@pytest.mark.parametrize("kind", KERNELS)
def test_without_instructions_weights_are_stored_narrow(monkeypatch, kind):
    monkeypatch.setenv(_features.FORCE, "widened")
    _features.path.cache_clear()
    config, comm = llama_config(), MPI.COMM_SELF
    file = model_file(config)
    inputs, mask = random_batch(config, 2, 9, seed=1)
    narrow, wide = (Model(file, comm, get_backend("numpy", comm, compute=c)) for c in (kind, "float32"))
    for model in (narrow, wide):
        model.use("single")
    got, want = narrow(inputs, mask), wide(inputs, mask)
    monkeypatch.undo()
    _features.path.cache_clear()
    assert 0 < np.abs(got - want).max() <= 16 * NEAR[kind] * np.abs(want).max()
    assert narrow.report["weight_bytes"][0] < wide.report["weight_bytes"][0]
    assert narrow.report["choices"]["products"] == "widened"
