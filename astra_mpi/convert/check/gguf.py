"""A GGUF file as transformers reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.check.findings import Finding, equal_rows
from astra_mpi.convert.check.libraries import quiet, reads
from astra_mpi.convert.gguf import read_config, rounded_tensors
from astra_mpi.convert.gguf.files import read_headers
from astra_mpi.errors import InputError

#: `tokenizer.ggml.pre` that transformers cuts texts by as it cuts them by GPT-2's expression
_AS_GPT2 = ("gpt-2", "phi-2", "olmo", "mpt", "jais", "exaone4", "trillion", "granite-docling", "modern-bert")


def reference_of(source: Path, keeps: bool) -> Any:
    """The model, float32; keeps: with the numbers that a model file has which keeps the types of the tensors.

    InputError if transformers cannot read the file.
    """
    import torch
    import transformers

    _, headers = read_headers(source)
    if len(headers) > 1:
        raise InputError(
            f"--check: transformers does not read {source.name}, one of {len(headers)} parts; join them first, with"
            " llama.cpp's `gguf-split --merge`, or convert without --check"
        )
    with quiet(), reads(str(source)):
        asked = read_config(source)
        kind = getattr(transformers, asked["architectures"][0])
        loaded = kind.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True)
        config = kind.config_class(**asked)
        other = _others(config.to_dict(), loaded.config.to_dict(), asked)
        if not other:
            config._attn_implementation = "eager"
            plain = kind(config)  # what it returned counts as quantised, and such models do not go to float64
            plain.load_state_dict(loaded.state_dict())
            if keeps:
                _round(plain, source)
    require(
        not other,
        f"--check: transformers does not read {', '.join(other)} of {source} as the file says; convert without --check",
    )
    return plain.eval()


def _round(model: Any, source: Path) -> None:
    import torch

    parameters = dict(model.named_parameters())
    for name, values in rounded_tensors(source).items():
        parameters[name].data = torch.from_numpy(values)


def _others(ours: dict[str, Any], theirs: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Keys of config.json that differ, those of tokens left aside."""
    known = [key for key in keys if key != "architectures" and not key.endswith("_token_id")]
    return [key for key in known if not _alike(ours.get(key), theirs.get(key))]


def _alike(one: Any, other: Any) -> bool:
    """The same, but for digits that float32 does not have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def compare_texts(source: Path, texts: tuple[str, ...], ours: list[list[int]]) -> Iterator[Finding]:
    """Our ids of texts against those of AutoTokenizer, where that cuts texts as the file says."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as SPLITS

    metadata = read_headers(source)[0].metadata
    pre = metadata.get("tokenizer.ggml.pre")
    if metadata.get("tokenizer.ggml.model") != "gpt2" or pre not in (*SPLITS, *_AS_GPT2):
        kind = f"{metadata.get('tokenizer.ggml.model')} {pre or ''}".strip()
        yield Finding("texts", note=f"not compared, for transformers reads tokenizers of kind {kind} otherwise")
        return
    with reads(f"the tokenizer of {source}"):
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        expected = theirs(list(texts))["input_ids"]
    yield equal_rows(f"token ids of {len(texts)} texts by AutoTokenizer", texts, ours, expected)
