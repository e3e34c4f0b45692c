"""A model file stored in another type against the one that it was made from: there is no other reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from astra_mpi.convert.check.findings import Finding
from astra_mpi.device.formats import format_of
from astra_mpi.files.modelfile import ModelFile, read_model


def compare_files(source: Path, path: Path) -> Iterator[Finding]:
    """Every weight of the file at `path` against the same one of `source`, and what else they hold."""
    old, new = read_model(source), read_model(path)
    names = ("config", "tokenizer", "preprocess")
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    codecs = [file.codec.digest if file.codec else "" for file in (old, new)]
    changed += ["codebooks"] * (codecs[0] != codecs[1])
    yield Finding(
        f"config, tokenizer, preprocessing and codebooks of {source.name}",
        wrong=f"{', '.join(changed)} differ" if changed else "",
    )
    yield _weights(old, new)


def _weights(old: ModelFile, new: ModelFile) -> Finding:
    what = f"{len(old.weights)} weights, {new.stored_dtype} for {old.stored_dtype}"
    largest, worst = 0.0, 0.0
    for name in old.weights:
        before, after = np.asarray(old.weights[name], np.float32), np.asarray(new.weights[name], np.float32)
        off = np.abs(after - before)
        allowed = _rounding(name, before, new.stored_dtype)
        if not (off <= allowed).all():
            return Finding(what, wrong=f"{name} is off by {off.max():.1e}, more than rounding explains")
        largest = max(largest, float(off.max(initial=0)))
        worst = max(worst, float(off.max(initial=0) / max(np.abs(before).max(initial=0), 1e-30)))
    note = f"largest difference {largest:.1e}, {worst:.1e} of a weight's largest value, as rounding explains"
    return Finding(what, note=note if largest else "")


def _rounding(name: str, before: np.ndarray, dtype: str) -> np.ndarray:
    """The differences that storing as `dtype` explains (docs/explanation/storage.md)."""
    return format_of(name, before.shape, dtype).rounding(name, before)
