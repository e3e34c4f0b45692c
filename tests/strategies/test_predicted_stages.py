"""Predicted, mapped and late codes where blocks lie on stages: each begins with the rows of all its tokens."""

from pathlib import Path

import numpy as np
import pytest

import astra_mpi
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.errors import AstraError
from astra_mpi.files.modelfile import write_model
from astra_mpi.oracle.verify import verify
from astra_mpi.ranks.broadcast import broadcast_text
from helpers.fakes import bert_config, llama_config, model_file

pytestmark = pytest.mark.mpi
LINEAR = {"site": "normed", "stages": 2, "codebook_size": 16, "predict": "linear"}
CASES = {
    "bert": (bert_config(pooling="cls", n_layers=5), CodecConfig(**LINEAR)),
    "llama": (llama_config(n_layers=5), CodecConfig(**LINEAR, sinks=2, inputs=3)),
    "next": (llama_config(n_layers=5), CodecConfig(**LINEAR | {"predict": "next", "stages": (0, 2, 0, 2, 2)})),
}


@pytest.fixture
def load(comm, tmp_path):
    """Loads a model of CASES over two stages of two ranks."""
    if comm.size != 4:
        pytest.skip("four ranks")
    shared = Path(broadcast_text(comm, str(tmp_path)))

    def load(name, grid="1x2x2", **options):
        if comm.rank == 0:
            write_model(shared / f"{name}.h5", model_file(*CASES[name]))
        comm.Barrier()
        options = {"handed_on": "float32", "stages": [2, 3], "strategy": "astra", **options}
        return astra_mpi.load(str(shared / f"{name}.h5"), comm=comm, grid=grid, **options)

    return load


@pytest.mark.parametrize("name", CASES)
def test_equals_the_oracle(comm, load, name):
    """Fresh and late, cut in order of ranks and not; nothing is sent in a stage's first block."""
    model = load(name)
    inputs, mask = random_batch(CASES[name][0], 3, 17, seed=1, ragged=True)
    for spread in (False, True):
        checks = verify(model, inputs, mask, ["astra", "astra:late"], spread=spread)
        if comm.rank == 0:
            assert all(check.passed and "skipped" not in check.reason for check in checks), checks
            assert {check.strategy for check in checks} >= {"astra", "astra:late"}
    model.use("astra")
    model(inputs, mask)
    report = model.report
    assert report["contributed_bytes"] == report["formula_bytes"]
    if name == "llama":  # rows and inputs of own tokens, to the same place and those behind it
        n_own = model.model.layout(np.array(report["tokens"])).token_counts if model.stage == 0 else None
        if comm.rank == 0:
            assert report["handed_bytes"][:2] == [4 * 24 * 4 * int(n_own[0]), report["handed_bytes"][1]]
            assert report["handed_bytes"][2:] == [0, 0]


def test_text_and_failures(comm, load):
    """All ranks of a stage hear of a failure of one rank before them, and the next call is well."""
    model = load("llama")
    inputs, mask = random_batch(CASES["llama"][0], 3, 17, seed=1, ragged=True)
    new = model.generate(inputs, mask, max_new_tokens=4)
    every = comm.allgather(new.tolist())
    assert new.shape == (3, 4) and all(one == every[0] for one in every)
    block, broken = model.strategy.steps, comm.rank == 1

    def failing(i, x):
        raise AstraError("broken")

    if broken:
        model.strategy.steps = failing
    with pytest.raises(AstraError, match="broken"):
        model(inputs, mask)
    model.strategy.steps = block
    np.testing.assert_array_equal(model.generate(inputs, mask, max_new_tokens=4), new)
