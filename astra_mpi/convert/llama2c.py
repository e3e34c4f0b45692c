"""Checkpoints of karpathy/llama2.c: `model.bin`, as its export writes it in version 0, and `tokenizer.bin`."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.checkpoint.folder import sha256
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.files.provenance import provenance
from astra_mpi.models.llama import LlamaConfig

_HEADER = struct.Struct("<7i")
#: what newer exports begin with
_MAGIC = 0x616B3432
_NORM_EPS, _THETA = 1e-5, 10000.0  # constants of run.c
_ENDS = 1, 2  # <s>, where run.c stops, and </s>
_SPACE = "\u2581"  # what stands for a space in a tokenizer.json


def convert_llama2c(
    source: str | Path, tokenizer: str | Path | None = None, dtype: str = "float32", command: str = "convert"
) -> tuple[ModelFile, list[str]]:
    """A model.bin, and its tokenizer.bin where given -> the model and notes for the user. InputError on other files."""
    source = Path(source)
    config, weights = read_checkpoint(source)
    vocabulary, notes = None, []
    if tokenizer is None:
        notes.append(f"{source} comes without a tokenizer, so the model will take only token ids; give --tokenizer")
    else:
        vocabulary = json.dumps(tokenizer_json(read_pieces(Path(tokenizer), config.vocab_size)), ensure_ascii=False)
    facts = {"source": source.name, "source_sha256": json.dumps({source.name: sha256(source)})}
    made = provenance(command, **facts)
    preprocess = {"max_tokens": config.max_positions, "end_tokens": list(_ENDS)}
    return ModelFile(config, weights, None, vocabulary, preprocess, made, stored_dtype=dtype), notes


def read_checkpoint(path: Path) -> tuple[LlamaConfig, dict[str, np.ndarray]]:
    """-> (config, weights by canonical name). InputError on other files."""
    raw = _read(path)
    pickled = raw.startswith((b"PK", b"\x80"))
    require(
        not pickled,
        f"{path} is a pickle of PyTorch, not a checkpoint of llama2.c, and is never loaded; give a Hugging Face folder"
        " with safetensors, which save_pretrained(...) writes",
    )
    require(len(raw) >= _HEADER.size, f"{path} is too short for a llama2.c checkpoint; download it again")
    width, d_ff, n_layers, n_heads, n_kv_heads, vocab, positions = _HEADER.unpack_from(raw)
    require(width != _MAGIC, f"{path} is not in version 0 of llama2.c's format; export it with --version 0")
    try:
        config = LlamaConfig(
            width,
            n_heads,
            n_kv_heads,
            n_layers,
            d_ff,
            "silu",
            _NORM_EPS,
            abs(vocab),
            positions,
            vocab > 0,
            rope_theta=_THETA,
        )
    except (InputError, ZeroDivisionError) as exc:
        raise InputError(f"{path} is no llama2.c checkpoint ({exc}); give its model.bin") from exc
    stored = _stored_shapes(config)
    sizes = [int(np.prod(shape, dtype=np.int64)) for shape in stored.values()]
    n_bytes = _HEADER.size + 4 * sum(sizes)
    require(len(raw) == n_bytes, f"{path} has {len(raw)} bytes, its header says {n_bytes}; download it again")
    numbers = np.frombuffer(raw, "<f4", offset=_HEADER.size)
    pieces = np.split(numbers, np.cumsum(sizes)[:-1])
    return config, _canonical(
        config, {name: piece.reshape(shape) for (name, shape), piece in zip(stored.items(), pieces, strict=True)}
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); check the path") from exc


def _stored_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """In the order of the file; linear layers (out, in), all blocks of a kind together."""
    n, d, kv, f = config.n_layers, config.d_model, config.d_kv, config.d_ff
    return {
        "embed.word": (config.vocab_size, d),
        "norm1": (n, d),
        "q": (n, d, d),
        "k": (n, kv, d),
        "v": (n, kv, d),
        "o": (n, d, d),
        "norm2": (n, d),
        "gate": (n, f, d),
        "fc2": (n, d, f),
        "fc1": (n, f, d),
        "norm": (d,),
        "turns": (2, config.max_positions, config.d_head // 2),  # computed, not read
        **({} if config.tied else {"head": (config.vocab_size, d)}),
    }


def _canonical(config: LlamaConfig, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    weights = {"embed.word": stored.pop("embed.word"), "norm.weight": stored.pop("norm")}
    stored.pop("turns")
    if not config.tied:
        weights["head.weight"] = stored.pop("head").T
    for name, arrays in stored.items():
        for i, array in enumerate(arrays):
            turned = _halves(array, config.d_head) if name in ("q", "k") else array
            weights[f"blocks.{i}.{name}.weight"] = turned.T
    return {name: np.ascontiguousarray(array, np.float32) for name, array in weights.items()}


def _halves(weight: np.ndarray, d_head: int) -> np.ndarray:
    """(heads * d, in): llama2.c turns neighbours 2a and 2a + 1 as a pair, we a and a + d / 2."""
    pairs = weight.reshape(-1, d_head // 2, 2, weight.shape[1])
    return pairs.transpose(0, 2, 1, 3).reshape(weight.shape)


def read_pieces(path: Path, vocab_size: int) -> list[tuple[str, float]]:
    """(text, score) of every token of a tokenizer.bin. InputError if it has not `vocab_size` of them."""
    raw, offset, pieces = _read(path), 4, []
    try:
        while offset < len(raw):
            score, length = struct.unpack_from("<fi", raw, offset)
            offset += 8 + length
            require(length >= 0 and offset <= len(raw), f"{path} is truncated; download it again")
            pieces.append((raw[offset - length : offset].decode(), score))
    except (struct.error, UnicodeDecodeError) as exc:
        raise InputError(f"{path} is no llama2.c tokenizer ({exc}); give its tokenizer.bin") from exc
    require(len(pieces) == vocab_size, f"{path} has {len(pieces)} tokens, the model {vocab_size}; give its own")
    return pieces


def tokenizer_json(pieces: list[tuple[str, float]]) -> dict[str, Any]:
    """A byte-pair encoding that joins, at each step, the neighbours whose union has the highest score.

    Tokens 0, 1, 2 are <unk>, <s>, </s>, then come 256 bytes; a text begins with <s> and a space.
    """
    special = ["<unk>", "<s>", "</s>"]
    names = special + [text.replace(" ", _SPACE) for text, _ in pieces[3:]]
    ids = {name: i for i, name in enumerate(names)}
    merges = [
        (-pieces[ids[name]][1], i, [name[:cut], name[cut:]])
        for i, name in enumerate(names[259:])
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    single = [begin, {"Sequence": {"id": "A", "type_id": 0}}]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, spaces]
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": name, **flags} for i, name in enumerate(special)],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": ids,
            "merges": [pair for _, _, pair in sorted(merges)],
        },
    }
