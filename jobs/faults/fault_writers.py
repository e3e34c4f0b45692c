"""Everything of astra-mpi that writes a file, as functions that write the same each time (fault_writes.py)."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fuzz_files
import numpy as np

from astra_mpi.commands.model_options import write_text
from astra_mpi.files import checksum, codecfile, hdf5, modelfile, whole
from astra_mpi.files.figure import save_figure
from astra_mpi.job.log import LEVELS
from astra_mpi.job.merge import merge
from astra_mpi.job.recorded import finished_summary
from astra_mpi.job.results import Results, remove_leftovers, write_json
from astra_mpi.measure.page import page
from astra_mpi.measure.runs import read_runs
from astra_mpi.measure.sweep.points import Store
from astra_mpi.models.bert_config import BertConfig

RECORD = {"settings": {"ranks": 2}, "runs": [{"latency_s": i / 7} for i in range(60)]}
SUMMARY = {"astra_mpi": "0", "choices": {}, "versions": {}, "metrics": {"forward_s": 0.5}, "notes": ["x" * 40] * 20}


@dataclass(frozen=True)
class Writer:
    name: str
    write: Callable[[Path], None]  # into this folder
    replaces: bool = True  # files that are there already are written anew


def writers(inputs: Path) -> list[Writer]:
    """inputs: a folder that `make_inputs` has filled."""
    text = page(read_runs([inputs / "runs.json"]), [])
    found = [
        Writer("model", lambda folder: _write_model(folder, "float32")),
        Writer("model, int8", lambda folder: _write_model(folder, "int8")),
        Writer("codebooks", _write_codebooks),
        Writer("batch job", _run_job, replaces=False),
        Writer("merge", lambda folder: _merge(inputs, folder), replaces=False),
        Writer("summary", lambda folder: write_json(folder / "out.json", SUMMARY)),
        Writer("JSON, trace", lambda folder: write_text(str(folder / "trace.json"), json.dumps(RECORD))),
        Writer("sweep point", lambda folder: Store(folder).put("key", RECORD)),
        Writer("HTML page", lambda folder: whole.write_text(folder / "report.html", text)),
    ]
    if find_spec("matplotlib"):
        found.append(Writer("picture", _draw))
    if find_spec("torch"):
        found += [Writer("checkpoint", _write_checkpoint), Writer("training log", _write_log)]
    return found


def make_inputs(folder: Path) -> None:
    """Results of two shards, and measured runs."""
    for index in range(2):
        state = {**_STATE, "input.shard": f"{index}/2"}
        items = range(4 * index, 4 * index + 4)
        results = Results(folder / f"shard{index}.h5", state, items, 2, True)
        for part in results.pending():
            results.write(part, _outputs(results, part), {"choices": {}})
        results.join(_SUMMARY, {"input": {}})
        results.close()
    latency = {"total": 0.1, "compute": 0.07, "exchange_wait": 0.03, "phases": {"mlp": 0.07, "exchange": 0.03}}
    run = {
        "model": "m.h5",
        "family": "bert",
        "strategy": "single",
        "ranks": 1,
        "tokens": [64],
        "network": "real",
        "accounting": None,
        "clock": "wall",
        "contributed_bytes": [0],
        "port_bytes": [0],
        "distinct_keys": None,
        "latency_s": latency,
        "codec": None,
        "choices": {},
        "spread": {"quartiles": [0.1, 0.1], "over_first": 1.0},
    }
    host = {"machine": "x86_64", "system": "Linux", "cpus": 2}
    (folder / "runs.json").write_text(json.dumps({"runs": [run], "host": host, "versions": {"python": "3"}}))


def held(folder: Path) -> dict[str, str | bytes]:
    """What the files in a folder say, by name: equal if they have the same bits. ValueError if one is not whole."""
    found: dict[str, str | bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name.endswith(".tmp") or path.name.startswith("lock"):
            raise ValueError(f"{name} is left over")
        if path.suffix == ".h5":
            with hdf5.reading(path) as file:
                if not checksum.fits(file):
                    raise ValueError(f"{name} is not what its checksum says")
                found[name] = str(file.attrs[checksum.NAME])
        elif path.is_file():
            found[name] = path.read_bytes()
            if path.suffix == ".json":
                json.loads(path.read_bytes())
    return found


_STATE: dict[str, Any] = {
    "task.name": "embed",
    "model_digest": "m",
    "codec_digest": "c",
    "run.batch": 2,
    "input_items": 8,
    "input.shard": None,
    "input.shard_by": "contiguous",
}
_COSTS = {
    "contributed_bytes": [1],
    "formula_bytes": [1],
    "port_bytes": [1],
    "paper_bytes": 1,
    "other_bytes": 1,
    "distinct_keys": None,
    "missing": None,
    "latency_s": {"total": 0.5},
}
_SUMMARY = {**SUMMARY, **_COSTS, "items": 4, "tokens": 9, "deck": {"input": {}}}


_TINY = BertConfig(
    **dict(d_model=8, n_heads=1, n_kv_heads=1, n_layers=1, d_ff=400, norm_eps=1e-5),
    **dict(activation="gelu", vocab_size=9, max_positions=8),
)


def _outputs(results: Results, part: int) -> Mapping[str, np.ndarray]:
    first, last = (results.items.start + n for n in results.span(part))
    return {"embedding": np.arange(first * 300, last * 300, dtype=np.float32).reshape(-1, 300)}


def _run_job(folder: Path) -> None:
    """What `run` does on rank 0; it goes on from the parts that are there."""
    output = folder / "out.h5"
    if finished_summary(output, _STATE) is not None:
        remove_leftovers(output)
    else:
        results = Results(output, _STATE, range(8), 2, True)
        try:
            for part in results.pending():
                results.write(part, _outputs(results, part), {"choices": {}})
            results.join(SUMMARY, {})
        finally:
            results.close()
    write_json(output.with_suffix(".json"), SUMMARY)


def _merge(inputs: Path, folder: Path) -> None:
    merge([inputs / "shard0.h5", inputs / "shard1.h5"], folder / "merged.h5")


def _write_model(folder: Path, dtype: str) -> None:
    config = _TINY
    codec, weights = fuzz_files.codec_of(config), fuzz_files.weights_of(config)
    model = modelfile.ModelFile(config, weights, codec, "{}", {"max_tokens": 9}, stored_dtype=dtype)
    modelfile.write_model(folder / "model.h5", model)


def _write_codebooks(folder: Path) -> None:
    codecfile.write_codebooks(folder / "codebooks.h5", fuzz_files.codec_of(fuzz_files.VIT), "d", {"source": "x"})


def _draw(folder: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot(range(5))
    save_figure(folder / "plot.png", figure)


def _write_checkpoint(folder: Path) -> None:
    import torch

    from astra_mpi.train import checkpoint

    tensors = {f"weights.{i}": torch.arange(2000.0) + i for i in range(4)}
    checkpoint.save(folder / "run.checkpoint.h5", "digest", 3, 1.0, 2.0, tensors)


def _write_log(folder: Path) -> None:
    from astra_mpi.train.log import Log

    log = Log(folder / "run.jsonl", folder / "run.png", 0, 9, "accuracy", True)
    with redirect_stderr(io.StringIO()):
        for step in range(1, 9):
            log.write({"step": step, "loss": 1 / step, "level": LEVELS[step % 4] * 40})
