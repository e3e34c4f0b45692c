"""A GGUF file -> a model file's contents.

The file is read as what it was made from: config.json, tokenizer.json and the like in a folder that lives as long as
the conversion, and tensors by their Hugging Face names. The families' own reading of such folders does the rest.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from astra_mpi.convert.gguf.config import architecture_of, hf_config
from astra_mpi.convert.gguf.files import read_headers
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.names import hf_tensors
from astra_mpi.convert.gguf.retold import retold
from astra_mpi.convert.gguf.tensors import GGUFTensor, open_tensors
from astra_mpi.convert.gguf.tokenizer import text_files
from astra_mpi.convert.hugging_face import Checkpoint, assembled
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile


def convert_gguf(source: str | Path, dtype: str | None = None, command: str = "convert") -> tuple[ModelFile, list[str]]:
    """The model of a GGUF file, or of all parts of a split one, and notes for the user.

    dtype: how `write_model` will store the weights; None: the narrowest that loses nothing to speak of
    (`kept_dtype`). InputError, with the file and the cure, on what is damaged or not supported.
    """
    source = Path(source)
    first, headers = read_headers(source)
    stored = {name: tensor for header in headers for name, tensor in open_tensors(header).items()}
    metadata = Metadata(first.path, dict(first.metadata), stored)
    kind = architecture_of(metadata)
    config = hf_config(metadata, kind, stored)
    tensors = hf_tensors(metadata, kind, config, stored)
    with tempfile.TemporaryDirectory(prefix="astra-mpi-gguf-") as name:
        folder = Path(name)
        for file, contents in ({"config.json": config} | text_files(metadata)).items():
            (folder / file).write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
        checkpoint = Checkpoint(source, folder, None, dict(tensors), [header.path for header in headers])
        try:
            model, notes = assembled(checkpoint, dtype or kept_dtype(stored), command)
        except InputError as exc:
            raise InputError(retold(str(exc), folder, source, metadata.architecture, kind)) from exc
    return model, [retold(note, folder, source, metadata.architecture, kind) for note in notes]


def kept_dtype(tensors: dict[str, GGUFTensor]) -> str:
    """The narrowest storage whose rounding is far below that of the file's own matrices.

    A quantised block has at most 8 bits per number and a factor in float16: float16 rounds to 11 bits.
    """
    kinds = {tensor.dtype for tensor in tensors.values() if len(tensor.stored) > 1}
    if "F32" in kinds or kinds > {"BF16"} or not kinds:
        return "float32"
    return "bfloat16" if kinds == {"BF16"} else "float16"
