"""Results of shards -> one file in input order; refused unless they are of one job and cover every item once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files import checksum, hdf5
from astra_mpi.inputs.shards import parse_shard, shard_items
from astra_mpi.job.ranking import write_ranks
from astra_mpi.job.recorded import LATER, ONCE, check_summary, summary_path
from astra_mpi.job.results import write_json
from astra_mpi.job.summary import costs

#: settings in which the shards of one job differ
_OWN = ("input.shard",)
#: what shards may each have chosen for themselves, all of them exact (`auto.py`)
#: what has no sum: shards may have run at the same time
_OF_A_RUN = ("elapsed_s", "replicas")
_CHOSEN = ("strategy", "bits_per_token_per_block", "auto")
#: items of an output that are copied in one go
_ROWS = 4096


@dataclass(frozen=True)
class Piece:
    """One results file."""

    path: Path
    state: dict[str, Any]
    summary: dict[str, Any]
    deck: dict[str, Any]
    items: range  # the numbers of its items in the input
    outputs: dict[str, tuple[Any, tuple[int, ...]]]  # name -> dtype, shape of an item


def merge(paths: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Join the results at `paths` in `output`, an HDF5 file with its summary beside it; returns the summary.

    What is there already is finished: the HDF5 file of a merge of the same results that could not write its summary.
    InputError names the files: other settings, another model or input, items that are missing or there twice.
    """
    output = Path(output)
    check_summary(output)
    pieces = sorted((_read(Path(path)) for path in paths), key=lambda piece: piece.items.start)
    for piece in pieces[1:]:
        _check_same_job(pieces[0], piece)
    total = int(pieces[0].state["input_items"])
    _check_cover(pieces, total)
    try:
        summary = merged_summary(pieces)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise InputError(f"{pieces[0].path}: its summary is not what astra-mpi writes ({exc!r}); make it anew") from exc
    if output.exists():
        summary = _written(output, summary)
    else:
        with hdf5.writing(output) as file:
            _write_attributes(file, pieces[0], summary)
            for piece in pieces:
                _copy(file, piece, total)
            write_ranks(file)
            summary["metrics"] |= _metrics(file, pieces)
            file.attrs["summary"] = json.dumps(summary)
    write_json(summary_path(output), summary)
    return summary


def _written(output: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary in the file at `output`; InputError unless it is a whole merge of the same results."""
    try:
        with hdf5.reading(output) as file:
            checksum.require_whole(file)
            found = _json(file, "summary")
    except InputError:
        found = {}
    expected = {**json.loads(json.dumps(summary)), "metrics": found.get("metrics")}
    require(found == expected, f"{output} exists; give another name, or remove it")
    return found


def _read(path: Path) -> Piece:
    with hdf5.reading(path) as file:
        hdf5.check_format(file, hdf5.RESULTS)
        state, summary, deck = (_json(file, name) for name in ("state", "summary", "deck"))
        outputs = hdf5.group(file, "outputs")
        index = hdf5.dataset(hdf5.group(file, "inputs"), "index", ("int64",))
        every = {name: hdf5.stored(outputs, name) for name in outputs}
        shapes = {name: (item.dtype, item.shape[1:]) for name, item in every.items()}
        lengths = {item.shape[0] if item.shape else 0 for item in every.values()}
        items = _items(path, state, len(index))
        require(lengths == {len(items)} and _agrees(index, items), f"{path} does not hold its items; make it anew")
        checksum.require_whole(file)
        return Piece(path, state, summary, deck, items, shapes)


def _json(file: h5py.File, name: str) -> dict[str, Any]:
    try:
        value = json.loads(hdf5.text(file, name))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{file.filename}: the attribute '{name}' is not what astra-mpi writes; make the file anew")
    return value


def _items(path: Path, state: Mapping[str, Any], n_items: int) -> range:
    """The numbers that the state says the items have."""
    total = state.get("input_items")
    if not isinstance(total, int):
        raise InputError(f"{path} does not say how many items its input has; make it with this version of astra-mpi")
    items = shard_items(total, state.get("input.shard"), state.get("input.shard_by", "contiguous"))
    require(len(items) == n_items, f"{path} holds {n_items} items, its settings say {len(items)}; make it anew")
    return items


def _agrees(index: h5py.Dataset, items: range) -> bool:
    blocks = (slice(start, start + _ROWS) for start in range(0, len(items), _ROWS))
    return all(np.array_equal(index[block], np.array(items[block])) for block in blocks)


def _check_same_job(first: Piece, other: Piece) -> None:
    states = ONCE | first.state, ONCE | other.state
    for name in sorted(name for name in {*states[0], *states[1]} if name not in _OWN):
        one, two = (state.get(name) for state in states)
        if one != two and not (name in LATER and None in (one, two)):
            raise InputError(
                f"{other.path} is of another job than {first.path}: {name} is {two!r} there and {one!r} here; "
                "merge the shards of one job"
            )
    require(first.outputs == other.outputs, f"{other.path} holds other outputs than {first.path}; make it anew")


def _check_cover(pieces: Sequence[Piece], total: int) -> None:
    """InputError names the first items that two files hold, or none."""
    holder = np.full(total, -1, dtype=np.int32)
    for number, piece in enumerate(pieces):
        mine = slice(piece.items.start, piece.items.stop, piece.items.step)
        twice = np.flatnonzero(holder[mine] >= 0)
        if twice.size:
            item = piece.items[int(twice[0])]
            other = pieces[holder[item]].path
            raise InputError(
                f"{len(twice)} items, the first being {item}, are in {other} and in {piece.path}; give each shard once"
            )
        holder[mine] = number
    missing = np.flatnonzero(holder < 0)
    if missing.size:
        raise InputError(
            f"{len(missing)} of {total} items, the first being {missing[0]}, are in none of the files; "
            f"{_absent(pieces)}"
        )


def _absent(pieces: Sequence[Piece]) -> str:
    """The cure: which shards to run."""
    shards = [parse_shard(piece.state["input.shard"]) for piece in pieces if piece.state.get("input.shard")]
    counts = {count for _, count in shards}
    if len(counts) != 1:
        return "give the files of all shards"
    count = counts.pop()
    absent = sorted(set(range(count)) - {index for index, _ in shards})
    named = ", ".join(map(str, absent[:10])) + (", .." if len(absent) > 10 else "")
    return f"finish shard {named} of {count} and give its file too"


def _write_attributes(file: h5py.File, first: Piece, summary: Mapping[str, Any]) -> None:
    state = {**first.state, "input.shard": None}
    deck = {**first.deck, "input": {**first.deck["input"], "shard": None}}
    file.attrs["format"], file.attrs["version"] = hdf5.RESULTS, hdf5.VERSION
    for name in ("model_digest", "codec_digest"):
        file.attrs[name] = state[name]
    for name, value in {"deck": deck, "state": state}.items():
        file.attrs[name] = json.dumps(value)
    for name in ("choices", "versions"):
        file.attrs[name] = json.dumps(summary[name])
    if state.get("labels"):
        file.attrs["labels"] = json.dumps(state["labels"])


def _copy(file: hdf5.Written, piece: Piece, total: int) -> None:
    with hdf5.reading(piece.path) as part:
        for name in ["inputs/index", *(f"outputs/{output}" for output in piece.outputs)]:
            values = part[name]
            whole = file.require_dataset(name, (total, *values.shape[1:]), values.dtype)
            for start in range(0, len(piece.items), _ROWS):
                items = piece.items[start : start + _ROWS]
                whole[items.start : items.stop : items.step] = values[start : start + _ROWS]
                file.check()


def merged_summary(pieces: Sequence[Piece]) -> dict[str, Any]:
    """One summary: counts added up, the latency of median total, the choices of each file where they differ."""
    every = [piece.summary for piece in pieces]
    first, choices = every[0], [summary["choices"] for summary in every]
    return {
        **{name: told for name, told in first.items() if name not in _OF_A_RUN},
        **{name: _common([summary.get(name) for summary in every]) for name in _CHOSEN},
        **{name: sum(summary[name] for summary in every) for name in ("items", "tokens")},
        **costs(every),
        "metrics": {"forward_s": sum(summary["metrics"].get("forward_s", 0.0) for summary in every)},
        "choices": choices[0] if all(choice == choices[0] for choice in choices) else {"by_file": choices},
        "deck": {**first["deck"], "input": {**first["deck"]["input"], "shard": None}},
        "merged_from": [
            {
                "file": piece.path.name,
                "shard": piece.state.get("input.shard"),
                "metrics": piece.summary["metrics"],
                **{name: piece.summary[name] for name in _OF_A_RUN if name in piece.summary},
            }
            for piece in pieces
        ],
    }


def _common(values: Sequence[Any]) -> Any:
    """The value of all files, None where they differ."""
    return values[0] if all(value == values[0] for value in values) else None


def _metrics(file: h5py.File, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Metrics of the whole; those of the pieces stay in `merged_from`."""
    metrics: dict[str, Any] = {}
    if all("accuracy" in piece.summary["metrics"] for piece in pieces):
        right = sum(piece.summary["metrics"]["accuracy"] * len(piece.items) for piece in pieces)
        metrics["accuracy"] = right / sum(len(piece.items) for piece in pieces)
    if pieces[0].state["task.name"] == "perplexity":
        nll, scored = file["outputs/nll"][()].sum(dtype=np.float64), file["outputs/scored"][()].sum()
        metrics |= {"perplexity": float(np.exp(nll / scored)), "scored_tokens": int(scored)}
    if pieces[0].state["task.name"] == "generate":
        metrics["new_tokens"] = int(file["outputs/n_tokens"][()].sum())
    return metrics
