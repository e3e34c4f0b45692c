"""What a user names as the source of drafts, checked."""

from __future__ import annotations

import json
from typing import Any

from astra_mpi.config import require
from astra_mpi.decode.drafts import Draft
from astra_mpi.decode.drafts.lookup import Lookup
from astra_mpi.decode.drafts.small import Small
from astra_mpi.errors import InputError
from astra_mpi.models.decoder import Decoder

LOOKUP = "lookup"


def draft_of(draft: Any, model: Any) -> Draft | None:
    """Lookup, a loaded model or a `Draft`, for drafts of `model`; None of none. InputError where it cannot be used."""
    if draft is None or isinstance(draft, Draft):
        return draft
    if isinstance(draft, str):
        if draft == LOOKUP:
            return Lookup()
        raise InputError(f"draft = '{draft}' is unknown; use '{LOOKUP}', or a model loaded with comm = MPI.COMM_SELF")
    require(
        isinstance(getattr(draft, "family", None), Decoder) and draft.comm.Get_size() == 1,
        "drafts come from a decoder on one rank; load it with comm = MPI.COMM_SELF",
    )
    check_tokens(draft, model)
    return Small(draft, model.config.vocab_size)


def check_tokens(draft: Any, model: Any) -> None:
    """InputError unless both models' ids are the same tokens."""
    ours, theirs = (None if m.tokenizer is None else _tokens(m.tokenizer) for m in (model, draft))
    sizes = draft.config.vocab_size, model.config.vocab_size
    unknown = ours is None or theirs is None
    require(
        sizes[0] == sizes[1] if unknown else ours == theirs,
        f"the draft model has other tokens than the model (ids of {sizes[0]} and {sizes[1]}, or other texts of them);"
        " use one with the same tokenizer",
    )


def _tokens(tokenizer: str) -> dict[str, int]:
    """Token -> id, of a tokenizer.json."""
    contents = json.loads(tokenizer)
    vocabulary = contents.get("model", {}).get("vocab", {})
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((p[0], i) for i, p in enumerate(vocabulary))
    known = {str(token): int(i) for token, i in pairs}
    return known | {str(token["content"]): int(token["id"]) for token in contents.get("added_tokens", ())}
