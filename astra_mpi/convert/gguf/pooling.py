"""`pooling_type` of a GGUF file as the modules of a sentence-transformers folder."""

from __future__ import annotations

from typing import Any

from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.errors import InputError

#: llama.cpp's numbers -> the pooling; 0 is none
_MODES = {1: "mean", 2: "cls"}
_OTHERS = {3: "the last token's", 4: "a reranker's"}
_TYPE = "sentence_transformers.models."


def pooling_files(metadata: Metadata, width: int) -> dict[str, Any]:
    """JSON files by name; {} where the file asks for no pooling. InputError on one that is not supported.

    The file does not say whether embeddings are scaled to length 1, so they are not.
    """
    kind = metadata.integer("@.pooling_type", 0)
    if kind == 0:
        return {}
    if kind not in _MODES:
        raise InputError(
            f"{metadata.path}: {metadata.named('@.pooling_type')} = {kind} ({_OTHERS.get(kind, 'unknown')}) is not"
            " supported; convert the Hugging Face folder it was made from"
        )
    parts = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [{"idx": i, "name": str(i), "path": parts[k], "type": _TYPE + k} for i, k in enumerate(parts)]
    return {
        "modules.json": modules,
        "1_Pooling/config.json": {"embedding_dimension": width, "pooling_mode": _MODES[kind]},
    }
