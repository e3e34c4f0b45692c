"""Jobs over stages of blocks: every task, and a cut that a resumed job keeps."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from astra_mpi.cli import _parse
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.ranks.broadcast import broadcast_text
from helpers.fakes import gpt2_config, model_file
from helpers.job import N_NEW, PROMPTS
from helpers.tokenizers import letter_tokenizer

pytestmark = pytest.mark.mpi
TASKS = {"generate": f"max_new_tokens = {N_NEW}", "perplexity": "stride = 5"}


@pytest.fixture
def folder(comm, tmp_path):
    """Rank 0's temporary folder, with a decoder, prompts and a deck for each task."""
    shared = Path(broadcast_text(comm, str(tmp_path)))
    if comm.rank == 0:
        file = model_file(gpt2_config(n_layers=5))
        limits = {"max_tokens": 12, "end_tokens": []}
        write_model(shared / "model.h5", ModelFile(file.config, file.weights, None, letter_tokenizer(), limits))
        (shared / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in PROMPTS))
        (shared / "in.txt").write_text(" ".join(PROMPTS) * 3)
        for task, setting in TASKS.items():
            path = "in.jsonl" if task == "generate" else "in.txt"
            (shared / f"{task}.toml").write_text(
                f'[model]\npath = "model.h5"\n[input]\npath = "{path}"\nkind = "text"\n'
                f'[task]\nname = "{task}"\n{setting}\n[parallel]\nstrategy = "sp"\nhanded_on = "float32"\n'
                '[run]\nbatch = 3\n[output]\npath = "out.h5"\n'
            )
    comm.Barrier()
    return shared


def run(comm, folder, task, name, *overrides):
    comm.Barrier()
    args = _parse(["run", str(folder / f"{task}.toml"), f"output.path={folder / name}", *overrides])
    assert args.run(args, comm) == 0
    comm.Barrier()
    with h5py.File(folder / name, locking=False) as file:
        return {key: values[()] for key, values in file["outputs"].items()}, json.loads(file.attrs["summary"])


@pytest.mark.parametrize("task", TASKS)
def test_tasks_over_stages(comm, folder, task):
    if comm.size < 2:
        pytest.skip("two ranks or more")
    plain, _ = run(comm, folder, task, "plain.h5")
    grids = [f"1x{comm.size}x1", *(["2x2x1", "1x2x2"] if comm.size == 4 else [])]
    for grid in grids:
        found, summary = run(comm, folder, task, f"{grid}.h5", f"parallel.grid={grid}")
        for name, values in plain.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[name], values, rtol=1e-5)
            else:
                np.testing.assert_array_equal(found[name], values)
        assert summary["grid"] == grid and sum(summary["blocks"]) == 5
        assert summary["choices"]["stages"] == summary["blocks"]
        assert len(summary["weight_bytes"]) == len(summary["handed_bytes"]) == comm.size
