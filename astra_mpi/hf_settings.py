"""How a Hugging Face folder says its model is used: pooling of sentence encoders, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.hf_folder import load_json, load_settings
from astra_mpi.text import Tokenizer

_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def sentence_modules(folder: Path) -> dict[str, Path]:
    """The parts that modules.json of sentence-transformers names, by kind: Transformer, Pooling, Normalize, ..."""
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    try:
        modules = {str(m["type"]).rpartition(".")[2]: _part(folder, str(m["path"])) for m in load_json(path)}
    except (TypeError, KeyError, ValueError, OSError) as exc:
        raise InputError(f"{path} is damaged ({exc}); download it again") from exc
    unknown = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
    require(not unknown, f"{path} has a module of type {', '.join(unknown)}, which is not supported")
    return modules


def _part(folder: Path, name: str) -> Path:
    """A folder inside a model's folder. ValueError if it is elsewhere, OSError on a name that none can have."""
    part = folder / name
    part.is_dir()
    if not part.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is outside the folder")
    return part


def pooling(modules: dict[str, Path]) -> dict[str, Any]:
    """The config fields `pooling` and `normalize`; nothing for a folder that is no sentence encoder's."""
    if "Pooling" not in modules:
        return {}
    path = modules["Pooling"] / "config.json"
    settings = load_settings(path)
    on = sorted(key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True)
    modes: list[Any] = [_POOLINGS.get(key, key) for key in on] or [settings.get("pooling_mode")]
    require(
        modes in (["mean"], ["cls"]), f"{path} pools by {', '.join(map(str, modes))}; only mean and cls are supported"
    )
    return {"pooling": modes[0], "normalize": "Normalize" in modules}


def max_tokens(folder: Path, max_positions: int) -> int:
    """Longest text that the model is meant for: as its files say, and no longer than its positions."""
    wanted = max_positions
    for name, key in (("tokenizer_config.json", "model_max_length"), ("sentence_bert_config.json", "max_seq_length")):
        if (folder / name).is_file():
            path = folder / name
            limit = load_settings(path).get(key, wanted)
            require(isinstance(limit, int) and limit > 0, f"{path}: {key} = {limit!r} must be a positive integer")
            wanted = min(wanted, limit)
    return wanted


def tokenizer(folder: Path, vocab_size: int) -> str | None:
    """Contents of tokenizer.json, or None if there is none. InputError if it is not for a vocabulary of this size."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    load_settings(path)
    text = path.read_text(encoding="utf-8")
    try:
        Tokenizer(text).check_fits(vocab_size)
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    return text


def end_tokens(folder: Path, vocab_size: int) -> list[int]:
    """Tokens after which the model has no more to say: eos_token_id, one or several, as generation knows it."""
    for name in ("generation_config.json", "config.json"):
        given = load_settings(folder / name).get("eos_token_id") if (folder / name).is_file() else None
        if given is not None:
            every = given if isinstance(given, list) else [given]
            return [i for i in every if isinstance(i, int) and 0 <= i < vocab_size]
    return []
