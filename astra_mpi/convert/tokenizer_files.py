"""What tokenizer_config.json and the files beside it say of a tokenizer, put together as `transformers` does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import load_object
from astra_mpi.config import require
from astra_mpi.errors import InputError

#: special tokens that have a name of their own
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: what a token may have beside its text
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
CONFIG, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


@contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """InputError where a value in the JSON files of a folder is of a type that nobody expects."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as exc:
        raise InputError(
            f"{folder}: its tokenizer or sentence-transformers files have a value of the wrong type ({exc}); download"
            " them again"
        ) from exc


def optional_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file, nulls included; {} if there is no file. InputError on anything else."""
    return load_object(path) if path.is_file() else {}


def read_settings(folder: Path, whole: dict[str, Any] | None, overrides: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the tokenizer's class; tokens with properties of their own are `AddedToken`.

    whole: tokenizer.json, or None. overrides: of sentence-transformers, instead of tokenizer_config.json's. What is
    known of added tokens by id lies under `added_tokens_decoder`, named tokens beyond the usual ones under
    `model_specific`. InputError names file and key.
    """
    given = optional_object(folder / CONFIG)
    given.pop("tokenizer_class", None)
    if whole is not None:  # which then has the last word on them
        given.pop("add_bos_token", None)
        given.pop("add_eos_token", None)
    given |= overrides
    if "additional_special_tokens" in given and not given.get("extra_special_tokens"):
        given["extra_special_tokens"] = given.pop("additional_special_tokens")
    specific = {k: given.pop(k) for k in list(given) if _is_specific(k) and isinstance(given[k], str)}
    if isinstance(given.get("extra_special_tokens"), dict):
        specific |= given.pop("extra_special_tokens")
    added = _added_tokens(folder, given, whole, specific)
    given = {key: _tokens_in(value, folder / CONFIG) for key, value in given.items()}
    by_text = {str(token): token for token in added.values()}
    for name in NAMED:
        if given.get(name) is not None:
            given[name] = by_text.get(str(given[name]), given[name])
    if "additional_special_tokens" in given and "extra_special_tokens" not in given:
        given["extra_special_tokens"] = given.pop("additional_special_tokens")
    late = {k: given.pop(k) for k in list(given) if _is_specific(k) and _is_token(given[k])}
    settings = given | {"added_tokens_decoder": added, "model_specific": late | specific}
    _check_tokens(folder, settings)
    return settings


def _is_specific(key: str) -> bool:
    return key.endswith("_token") and key not in NAMED


def _is_token(value: Any) -> bool:
    from tokenizers import AddedToken

    return isinstance(value, str | AddedToken)


def _added_tokens(
    folder: Path, given: dict[str, Any], whole: dict[str, Any] | None, specific: dict[str, Any]
) -> dict[int, Any]:
    """id -> AddedToken of added_tokens_decoder; without it of the older files, of which one completes `given`."""
    if "added_tokens_decoder" in given:
        entries = given.pop("added_tokens_decoder")
        if not isinstance(entries, dict):
            raise InputError(f"{folder / CONFIG}: added_tokens_decoder is not an object; save the tokenizer again")
        return {_integer(i, folder / CONFIG): token_of(entry, folder / CONFIG) for i, entry in entries.items()}
    for key, value in optional_object(folder / SPECIAL).items():
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = token_of(value | {"special": True}, folder / SPECIAL)
        elif isinstance(value, list) and key == "extra_special_tokens":
            value = _merged(given.get(key) or [], value, folder / SPECIAL)
        given[key] = value
    if isinstance(given.get("extra_special_tokens"), dict):
        specific |= given.pop("extra_special_tokens")
    added = {}
    known = {str(given[name]) for name in NAMED if given.get(name)}
    known |= set(map(str, given.get("extra_special_tokens") or []))
    for text, i in optional_object(folder / ADDED).items():
        flags = {"rstrip": False, "lstrip": False, "normalized": text not in known, "special": text in known}
        added[_integer(i, folder / ADDED)] = token_of({"content": text, **flags}, folder / ADDED)
    for entry in (whole or {}).get("added_tokens") or []:
        flags = {key: value for key, value in entry.items() if key != "id"}
        added[_integer(entry.get("id"), folder / "tokenizer.json")] = token_of(flags, folder / "tokenizer.json")
    return added


def _merged(first: list[Any], more: list[Any], path: Path) -> list[Any]:
    every = list(first)
    for entry in more:
        token = token_of(entry | {"special": True}, path) if isinstance(entry, dict) else entry
        if token not in every:
            every.append(token)
    return every


def token_of(entry: Any, path: Path) -> Any:
    """An AddedToken from its JSON object. InputError."""
    from tokenizers import AddedToken

    given = {key: entry[key] for key in _FLAGS if key in entry} if isinstance(entry, dict) else {}
    try:
        return AddedToken(entry["content"], **given)
    except (TypeError, KeyError) as exc:
        raise InputError(f"{path}: {entry!r} is no added token ({exc}); save the tokenizer again") from exc


def _tokens_in(value: Any, path: Path) -> Any:
    """`value` with the objects that say they are tokens as such."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return token_of(value, path)
        return {key: _tokens_in(part, path) for key, part in value.items()}
    return [_tokens_in(part, path) for part in value] if isinstance(value, list) else value


def _integer(value: Any, path: Path) -> int:
    try:
        return int(value)
    except (TypeError, ValueError) as exc:
        raise InputError(f"{path}: {value!r} is no token id; save the tokenizer again") from exc


def _check_tokens(folder: Path, settings: dict[str, Any]) -> None:
    """InputError on names that stand for no token."""
    named = {name: settings.get(name) for name in NAMED} | settings["model_specific"]
    extra = settings.get("extra_special_tokens")
    require(
        extra is None or isinstance(extra, list), f"{folder / CONFIG}: extra_special_tokens = {extra!r} is not a list"
    )
    named |= {f"extra_special_tokens[{i}]": token for i, token in enumerate(extra or [])}
    for name, token in named.items():
        good = token is None or _is_token(token)
        require(good, f"{folder}: {name} = {token!r} in {CONFIG} or {SPECIAL} is no token; give a string")
