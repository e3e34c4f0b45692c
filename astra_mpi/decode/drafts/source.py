"""What a user names as the source of drafts."""

from __future__ import annotations

from typing import Any

from astra_mpi.decode.drafts import Draft
from astra_mpi.decode.drafts.lookup import Lookup
from astra_mpi.errors import InputError


def draft_of(draft: Any, model: Any) -> Draft | None:
    """ "lookup", or a loaded model, for drafts of `model`. InputError where it cannot be used."""
    if draft is None:
        return None
    if draft == "lookup":
        return Lookup()
    if isinstance(draft, str):
        raise InputError(f"draft = '{draft}' is unknown; use 'lookup', or a model loaded with comm = MPI.COMM_SELF")
    raise InputError("todo")
