"""From tokens to an embedding: the settings of sentence-transformers' Pooling and Normalize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.tokenizer_files import optional_object

#: keys of before `pooling_mode`, in the order in which the modes are put side by side
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SIZES = ("word_embedding_dimension", "embedding_dimension")


def pooling_of(folder: Path, normalized: bool) -> tuple[str, bool, list[str]]:
    """-> (pooling, whether the tokens of a prompt count, keys left aside). InputError names what is not supported."""
    path = folder / "config.json"
    require(path.is_file(), f"{path} is missing; give a complete Hugging Face folder")
    settings = optional_object(path)
    require(any(key in settings for key in _SIZES), f"{path} has no embedding_dimension; download it again")
    given = settings.get("pooling_mode", "mean")
    modes = given if isinstance(given, list) else [given]
    names = "pooling_mode " + ", ".join(map(str, modes))
    if "pooling_mode" not in settings:
        on = [key for key in _FLAGS if settings.get(key)]
        modes, names = [_FLAGS[key] for key in on] or ["mean"], ", ".join(on)
    if modes == ["mean_sqrt_len_tokens"] and normalized:
        modes = ["mean"]  # in another length, which does not last
    known = modes in (["mean"], ["cls"], ["lasttoken"])
    require(known, f"{path}: {names} is not supported; only mean, cls and lasttoken are")
    modes = ["last"] if modes == ["lasttoken"] else modes
    include_prompt = settings.get("include_prompt", True)
    unknown = sorted(set(settings) - {*_FLAGS, *_SIZES, "pooling_mode", "include_prompt"})
    return (
        str(modes[0]),
        bool(include_prompt),
        [f"{path.parent.name}/config.json: {key} (not known)" for key in unknown],
    )


def check_normalize(folder: Path) -> None:
    """InputError unless the module scales the embedding itself."""
    path, own = folder / "config.json", "sentence_embedding"
    settings: dict[str, Any] = optional_object(path)
    names = {"module_input_name": settings.get("module_input_name", own)}
    names["module_output_name"] = settings.get("module_output_name") or own
    for key, name in names.items():
        require(name == own, f"{path}: {key} = {name!r} is not supported; only {own} is")
