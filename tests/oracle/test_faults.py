"""Wrong kernels in narrow types: what `verify` must find in answers, and what it must not take for wrong."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.oracle.tolerance import tolerance_of
from astra_mpi.oracle.verify import verify
from helpers.fakes import llama_config, model_file

CONFIG = llama_config(d_model=96, d_ff=128, n_layers=4, vocab_size=100)
COMPUTE = ["bfloat16", "int8"]


def products(change):
    """Kernels whose products (n, m) pass through `change`."""

    def wrong(kernels):
        def layer(x, weights, out, bias, activation, gate, gate_bias, add):
            made = change(kernels.layer(x, weights, np.zeros_like(out), bias, activation, gate, gate_bias))
            out[...] = out + made if add else made
            return out

        return {"layer": layer}

    return wrong


def queries(change):
    """Kernels whose attention takes other queries (heads, n, d)."""
    return lambda kernels: {"attend": lambda q, *rest, **more: kernels.attend(change(q), *rest, **more)}


def strip_again(made):
    made[:, 32:64] = made[:, :32]
    return made


def last_row_missing(made):
    made[-1] = 0
    return made


def late(kernels):
    """A token sees the one after it."""

    def attend(q, k, v, key_bias, causal, *rest, **more):
        return kernels.attend(q, k, v, key_bias, None if causal is None else causal + 1, *rest, **more)

    return {"attend": attend}


FAULTS = {
    "32 columns are those beside them": products(strip_again),
    "rows are one further": products(lambda made: np.roll(made, 1, axis=0)),
    "the last row is missing": products(last_row_missing),
    "the scale of 16 outputs is lost": products(lambda made: made * np.where(np.arange(made.shape[1]) < 16, 1.2, 1)),
    "two heads change places": queries(lambda q: np.ascontiguousarray(q[[1, 0, *range(2, len(q))]])),
    "queries are not scaled": queries(lambda q: q * np.float32(q.shape[2] ** 0.5)),
    "attention looks ahead": late,
}


def some_widen(comm, compute):
    """Whether some rank's CPU packs no weights, or is too busy to find that this pays."""
    widens = get_backend("numpy", comm, compute=compute).choices["products"].startswith("widened")
    return any(comm.allgather(widens))


def checks_of(comm, compute, wrong=None, sharpness=6.0, strategy="sp:x:float32", on=-1):
    """sharpness: of queries and of keys, so that attention sees a few tokens."""
    backend = get_backend("numpy", comm, compute=compute)
    if wrong and comm.rank == on % comm.size:
        kernels = SimpleNamespace(**vars(backend.kernels) | wrong(backend.kernels))
        backend = dataclasses.replace(backend, kernels=kernels)
    file = model_file(CONFIG)
    sharp = {name: w * np.float32(sharpness) for name, w in file.weights.items() if name.split(".")[-2] in "qk"}
    model = Model(dataclasses.replace(file, weights=file.weights | sharp), comm, backend)
    inputs, mask = random_batch(CONFIG, 2, 37, seed=1, ragged=True)
    return [check for check in verify(model, inputs, mask, [strategy]) if check.strategy != "products"]


@pytest.mark.mpi
@pytest.mark.parametrize("compute", COMPUTE)
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_answers_of_one_rank_are_found(comm, fault, compute):
    if some_widen(comm, compute):
        pytest.skip("this CPU packs no weights")
    for check in checks_of(comm, compute, FAULTS[fault]):
        assert not check.passed and check.excess > 1.5 and "differs from the oracle" in check.reason, check
    comm.Barrier()


@pytest.mark.mpi
@pytest.mark.parametrize("compute", COMPUTE)
def test_codes_of_other_tokens_are_found(comm, compute):
    """Sent by the first rank: the last one of a decoder's sends nothing."""

    def wrong(kernels):
        return {"encode_residual": lambda *given: np.roll(kernels.encode_residual(*given), 1, axis=0)}

    for check in checks_of(comm, compute, wrong, strategy="astra", on=0):
        assert check.passed == (comm.size == 1), check
        assert check.passed or "not the nearest" in check.reason, check
    comm.Barrier()


@pytest.mark.mpi
@pytest.mark.parametrize("compute", COMPUTE)
def test_a_model_that_amplifies_roundings_passes(comm, compute):
    """Its rows differ from the oracle's by more than a model's of which each product adds a rounding."""
    widened = some_widen(comm, compute)
    for check in checks_of(comm, compute, sharpness=8.0):
        assert check.passed, check
        if comm.size > 1 and not widened:  # one rank may happen to round all as the oracle does
            assert check.max_difference > 3 * tolerance_of(compute, CONFIG.n_layers).difference
    comm.Barrier()
