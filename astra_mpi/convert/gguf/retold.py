"""What is said of a Hugging Face folder, said of the GGUF file that it stands for."""

from __future__ import annotations

import re
from pathlib import Path

from astra_mpi.convert.gguf.architectures import Architecture

_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
_PHRASES = {
    "the folder is incomplete, or config.json is of another model": "the file is incomplete, download it again",
    "which its config.json asks for": "which its metadata ask for",
    "that config.json does not ask for": "that its metadata do not ask for",
    "which config.json contradicts": "which its metadata contradict; download it again",
    "config.json": "its metadata",
}


def retold(text: str, folder: Path, source: Path, name: str, kind: Architecture) -> str:
    """`text` with the file instead of the folder, and its own names of tensors and keys.

    name: of the architecture.
    """
    for file in _FILES:
        text = text.replace(f"{folder}/{file}", str(source))
    text = text.replace(str(folder), str(source))
    for phrase, other in _PHRASES.items():
        text = text.replace(phrase, other)
    # the first part of a name may be left out
    first, _, rest = kind.prefix.partition(".")
    before = rf"\b(?:{first}\.)?{re.escape(rest)}".replace(r"\{\}", r"(\d+)")
    for ours, theirs in kind.block.items():
        text = re.sub(rf"{before}{re.escape(theirs)}\b", rf"blk.\1.{ours}", text)
    for key, theirs in kind.keys.items():
        text = re.sub(rf"\b{theirs}\b", f"{name}.{key}", text)
    return text
