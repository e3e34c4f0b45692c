"""Where the drafts of a job come from: look-up, or the model of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpi4py import MPI

from astra_mpi.config import require
from astra_mpi.decode.drafts.source import LOOKUP, draft_of
from astra_mpi.engine import Model
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model
from astra_mpi.stages.pipeline import Pipeline


def open_draft(draft: str | Path | None, model: Any) -> Any:
    """What `Model.generate` takes as `draft`; the model of a file is this rank's alone, on the device of `model`.
    InputError where it cannot be used."""
    if draft is None or draft == LOOKUP:
        return draft
    require(
        not isinstance(model, Pipeline),
        "stages of blocks check no drafts; leave task.draft out, or use a grid with one stage",
    )
    small = Model(read_model(str(draft)), MPI.COMM_SELF, model.backend)
    small.use("single")
    try:
        draft_of(small, model)
    except InputError as exc:
        raise InputError(f"{draft}: {exc}") from exc
    return small
