"""`convert --check`: a model file against what it was made from, computed by other programs.

`verify` holds ranks against an oracle that reads the same file, so it cannot see a fault of the conversion. Here the
source is read by transformers, in float64, and both get the same random inputs, texts and images
(docs/reference/model-file.md).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from astra_mpi.convert.check.findings import Finding
from astra_mpi.errors import AstraError, VerifyError
from astra_mpi.files import whole
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.models.bert_config import BertConfig


def write_checked(source: Path, output: Path, model: ModelFile) -> str:
    """Write `model`, converted from `source`, and check the written file; a line per finding is printed.

    Returns the digest. The file gets its name only if the check passes; VerifyError if it does not, InputError if a
    program that is needed is missing or cannot read the source, AstraError if it cannot be written.
    """
    target = whole.followed(output)
    hidden = target.with_name(f".{target.name}.{os.getpid()}.checked")
    try:
        try:
            digest = write_model(hidden, model)
        except AstraError as exc:
            raise type(exc)(str(exc).replace(str(hidden), str(output))) from exc
        wrong = []
        for finding in compare(source, hidden, model):
            print(f"check: {finding}", flush=True)
            wrong += [finding] * (not finding.passed)
        if wrong:
            raise VerifyError(
                f"{output} is not written, for it gives other answers than {source}: {wrong[0].what}, {wrong[0].why};"
                " convert without --check to look into it, and please report it"
            )
        whole.take_place(hidden, output)
        return digest
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def compare(source: Path, path: Path, model: ModelFile) -> Iterator[Finding]:
    """The model file at `path`, written from `model`, against the `source` of the conversion, one finding at a time."""
    if source.suffix == ".h5":
        from astra_mpi.convert.check.model_files import compare_files

        yield from compare_files(source, path)
        return
    from astra_mpi.convert.check import decoders, encoders, images
    from astra_mpi.convert.check.reference import Reference, load_reference

    print(f"check: {source} is read by transformers", file=sys.stderr, flush=True)
    reference: Reference = load_reference(source, model)
    texts = encoders if isinstance(model.config, BertConfig) else decoders
    family: Any = images if model.config.family == "vit" else texts
    yield from family.compare(reference, _loaded(path))


def _loaded(path: Path) -> Any:
    from astra_mpi.ranks.shared_memory import start_mpi

    start_mpi()
    from mpi4py import MPI

    from astra_mpi.loading import load

    return load(str(path), comm=MPI.COMM_SELF, strategy="single")
