"""A GGUF file -> a model file's contents.

The file is read as what it was made from: config.json, tokenizer.json and the like in a folder that lives as long as
the conversion, and tensors by their Hugging Face names. The families' own reading of such folders does the rest.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.convert.gguf.blocks import KEPT, ROUNDED
from astra_mpi.convert.gguf.config import architecture_of, hf_config
from astra_mpi.convert.gguf.files import read_headers
from astra_mpi.convert.gguf.header import Header
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.names import hf_tensors
from astra_mpi.convert.gguf.pooling import pooling_files
from astra_mpi.convert.gguf.retold import retold
from astra_mpi.convert.gguf.tensors import GGUFTensor, open_tensors
from astra_mpi.convert.gguf.tokenizer import text_files
from astra_mpi.convert.hugging_face import Checkpoint, assembled
from astra_mpi.convert.sentence import read_encoder
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile


def convert_gguf(source: str | Path, dtype: str | None = None, command: str = "convert") -> tuple[ModelFile, list[str]]:
    """The model of a GGUF file, or of all parts of a split one, and notes for the user.

    dtype: how `write_model` will store the weights; None: each as the format that keeps its numbers (`blocks.KEPT`).
    InputError, with the file and the cure, on what is damaged or not supported.
    """
    source = Path(source)
    headers, metadata, stored = _opened(source)
    kind = architecture_of(metadata)
    config = hf_config(metadata, kind, stored)
    tensors = hf_tensors(metadata, kind, config, stored)
    pooled = pooling_files(metadata, config["hidden_size"]) if kind.model_type == "bert" else {}
    with tempfile.TemporaryDirectory(prefix="astra-mpi-gguf-") as name:
        folder = Path(name)
        for file, contents in ({"config.json": config} | text_files(metadata) | pooled).items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
        try:
            encoder = read_encoder(folder)
            checkpoint = Checkpoint(source, folder, encoder, dict(tensors), [header.path for header in headers])
            model, notes = assembled(checkpoint, dtype or kept_dtype(stored), command, keeps=dtype is None)
        except InputError as exc:
            raise InputError(retold(str(exc), folder, source, metadata.architecture, kind)) from exc
    if pooled:
        notes.append(f"{source} does not say whether embeddings are scaled to length 1; they are not")
    return model, [retold(note, folder, source, metadata.architecture, kind) for note in notes]


def read_config(source: Path) -> dict[str, Any]:
    """The config.json that a file stands for. InputError."""
    _, metadata, stored = _opened(source)
    return hf_config(metadata, architecture_of(metadata), stored)


def rounded_tensors(source: Path) -> dict[str, np.ndarray]:
    """Tensors by their Hugging Face names whose numbers change where each is stored as what keeps it; as they then are.
    InputError."""
    _, metadata, stored = _opened(source)
    kind = architecture_of(metadata)
    found = hf_tensors(metadata, kind, hf_config(metadata, kind, stored), stored)
    return {name: tensor.read_kept() for name, tensor in found.items() if tensor.dtype in ROUNDED}


def _opened(source: Path) -> tuple[list[Header], Metadata, dict[str, GGUFTensor]]:
    """-> (headers of all parts, metadata, tensors by their names in the file)."""
    first, headers = read_headers(source)
    stored = {name: tensor for header in headers for name, tensor in open_tensors(header).items()}
    return headers, Metadata(first.path, dict(first.metadata), stored), stored


def kept_dtype(tensors: dict[str, GGUFTensor]) -> str:
    """The format that keeps most numbers of the file's matrices."""
    numbers: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.stored) > 1:
            numbers[KEPT[tensor.dtype]] += math.prod(tensor.stored)
    return max(numbers, key=lambda kind: numbers[kind]) if numbers else "float32"
