"""Every field that the reference reads of a tokenizer's or sentence encoder's files, set to other values one at a time.

python jobs/checks/differential_text.py [--folder NAME] [--key KEY] [--all]
For every folder of differential_text_folders.py, and every change of differential_text_fields.py, AutoTokenizer of
transformers (or SentenceTransformer.encode) and this project make tokens (embeddings) of the same texts. A change ends
as `same`, as `refused` by a sentence that names the key (told apart where the answer would be the same), or as
`fails there`, where the reference has no answer itself. Anything else is a MISMATCH: so is a key that this project
calls harmless and that changes the reference's answer, and a field that the reference's source reads and no change
covers. Prints mismatches (--all: every change) and totals as JSON; exit code 1 on a mismatch.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import copy
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from differential import NEEDLESS, silence
from differential_text_fields import (
    REMOVED,
    Change,
    sentence_changes,
    tokenizer_changes,
    uncovered,
)
from differential_text_folders import FOLDERS, MAX_POSITIONS, TEXTS, sentence_encoder

from astra_mpi.convert.check.libraries import first_line
from astra_mpi.convert.text import read_text_settings
from astra_mpi.convert.tokenizer_keys import HARMLESS
from astra_mpi.errors import InputError
from astra_mpi.inputs.text import tokenizer_of

TOLERANCE = 1e-4
SENTENCES = "sentence encoder"


class Row(NamedTuple):
    """What became of one change."""

    folder: str
    change: Change
    outcome: str
    detail: str = ""


class Fails(Exception):
    """The reference gives no answer."""


def edit(folder: Path, change: Change) -> None:
    """Make one change in a folder: in a JSON file, which is made if it is not there."""
    path = folder / change.file
    if change.key == "":
        if change.value is REMOVED:
            path.unlink(missing_ok=True)
            return
        contents = change.value
    else:
        contents = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        *outer, last = [int(k) if k.isdigit() else k for k in change.key.split(".")]
        inside = contents
        for key in outer:
            inside = inside[key]
        if change.value is REMOVED:
            inside.pop(last, None)
        else:
            inside[last] = copy.deepcopy(change.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")


def first_changes(folder: Path, changes: list[Change]) -> list[Change]:
    """Of every key the first value that this folder does not have."""
    first: dict[tuple[str, str], Change] = {}
    for change in changes:
        if _value(folder, change) != change.value:
            first.setdefault((change.file, change.key), change)
    return list(first.values())


def _value(folder: Path, change: Change) -> Any:
    """What a folder has where a change is made."""
    path = folder / change.file
    if not path.is_file():
        return REMOVED
    value = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        value = json.loads(value)
    for key in filter(None, change.key.split(".")):
        if isinstance(value, dict) and key not in value:
            return REMOVED
        value = value[int(key) if key.isdigit() else key]
    return value


def reference_tokens(folder: Path) -> list[Any]:
    """Token ids per text as AutoTokenizer gives them, and of decoders their text."""
    import transformers

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        limit = int(min(tokenizer.model_max_length, MAX_POSITIONS))
        rows = [tokenizer(text, truncation=True, max_length=limit)["input_ids"] for text in TEXTS]
        return [*rows, [tokenizer.decode(row, skip_special_tokens=True) for row in rows]]
    except BaseException as exc:
        raise _no_answer(exc) from exc


def own_tokens(folder: Path) -> list[Any]:
    """The same as a model file of this folder gives them. InputError."""
    config = SimpleNamespace(max_positions=MAX_POSITIONS, vocab_size=1 << 20)
    text = read_text_settings(folder, config, None)
    if text.tokenizer is None:
        raise InputError(text.notes[-1])
    tokenizer = tokenizer_of(text.tokenizer, config.vocab_size, preprocess=text.preprocess)
    rows = tokenizer.encode(TEXTS, text.preprocess["max_tokens"])
    return [*(row.tolist() for row in rows), [tokenizer.decode(row) for row in rows]]


def reference_embeddings(folder: Path) -> np.ndarray:
    """(n, D) as SentenceTransformer.encode gives them, in batches of one: padded on the left, BERT's answers depend on
    what else is in a batch."""
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        return np.asarray(model.encode(TEXTS, batch_size=1))
    except BaseException as exc:
        raise _no_answer(exc) from exc


def _no_answer(exc: BaseException) -> BaseException:
    """Whatever is wrong, there is no answer; a panic of Rust code is no Exception."""
    known = isinstance(exc, Exception) or type(exc).__name__ == "PanicException"
    return Fails(first_line(exc)) if known else exc


def own_embeddings(folder: Path) -> np.ndarray:
    """The same as a model file of this folder gives them. InputError."""
    from mpi4py import MPI

    import astra_mpi
    from astra_mpi.convert.hugging_face import convert
    from astra_mpi.files.modelfile import write_model
    from astra_mpi.inputs.sources import padded

    path = folder / "made.h5"
    write_model(path, convert(folder)[0])
    model = astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single", backend="reference")
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    answer: np.ndarray = model(*padded(tokenizer.encode(TEXTS, model.preprocess["max_tokens"])))
    return answer


def same(one: Any, two: Any) -> bool:
    if isinstance(one, np.ndarray):
        return one.shape == two.shape and float(abs(one - two).max()) < TOLERANCE
    return bool(one == two)


def compare(folder: Path, name: str, change: Change, base: Any) -> Row:
    """One change, made in this folder. base: the reference's answer without it."""
    sentences = name == SENTENCES
    edit(folder, change)
    try:
        with quiet():
            want = (reference_embeddings if sentences else reference_tokens)(folder)
    except Fails as exc:
        want, reason = None, str(exc)
    try:
        with quiet():
            got = (own_embeddings if sentences else own_tokens)(folder)
    except InputError as exc:
        if want is None:
            return Row(name, change, "fails there", "refused here too")
        refused = NEEDLESS if same(want, base) else "refused"
        said = str(exc).replace(str(folder), "")
        return Row(name, change, refused if change.names(said) else "MISMATCH", said)
    if want is None:
        return Row(name, change, "fails there", reason[:200])
    if not same(want, got):
        return Row(name, change, "MISMATCH", difference(want, got))
    if change.file == "tokenizer_config.json" and change.key in HARMLESS and not same(want, base):
        return Row(name, change, "MISMATCH", "called harmless, but it changes the reference's answer")
    return Row(name, change, "same", "" if same(want, base) else "another answer than before")


def difference(want: Any, got: Any) -> str:
    if isinstance(want, np.ndarray):
        return f"shapes {want.shape} {got.shape}" + (
            f", {abs(want - got).max():.1e}" if want.shape == got.shape else ""
        )
    i = next(i for i, (one, two) in enumerate(zip(want, got, strict=True)) if one != two)
    return (
        f"{TEXTS[i]!r}: {want[i][:12]}, here {got[i][:12]}" if i < len(TEXTS) else f"decoded {want[i]}, here {got[i]}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries say of odd folders."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def rows_of(name: str, changes: list[Change], scratch: Path, first: bool = False) -> Iterator[Row]:
    """Every change of one folder (first: of every key only the first), the folder unchanged first of all."""
    original = scratch / name
    (sentence_encoder if name == SENTENCES else FOLDERS[name])(original)
    with quiet():
        base = (reference_embeddings if name == SENTENCES else reference_tokens)(original)
    if first:
        changes = first_changes(original, changes)
    there = [c for c in changes if c.file != "tokenizer.json" or (original / c.file).is_file()]
    for i, change in enumerate([Change("tokenizer_config.json", "verbose", False), *there]):
        folder = scratch / f"{name}-{i}"
        shutil.copytree(original, folder)
        try:
            yield compare(folder, name, change, base)
        finally:
            shutil.rmtree(folder)


def findings(folders: Sequence[str] = (), key: str | None = None, every: bool = False) -> int:
    """Print mismatches (every: all changes) and totals -> how many there are. Default: of all folders and keys."""
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as scratch:
        for name in folders or [*FOLDERS, SENTENCES]:
            changes = sentence_changes() if name == SENTENCES else tokenizer_changes()
            changes = [change for change in changes if key in (None, change.key)]
            for row in rows_of(name, changes, Path(scratch)):
                counts[row.outcome] += 1
                if every or row.outcome == "MISMATCH":
                    print(f"{row.outcome:<12}{row.folder:<18}{row.change}  {row.detail}", flush=True)
    missing = uncovered()
    for field in missing:
        print(f"MISMATCH    no change covers {field}, which the reference reads")
    print(json.dumps({**counts, "not covered": len(missing)}))
    return counts["MISMATCH"] + len(missing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", choices=[*FOLDERS, SENTENCES], help="only this one")
    parser.add_argument("--key", help="only this key")
    parser.add_argument("--all", action="store_true", help="print every change")
    args = parser.parse_args()
    silence()
    return 1 if findings([args.folder] if args.folder else (), args.key, args.all) else 0


if __name__ == "__main__":
    sys.exit(main())
