"""What sentence-transformers' Transformer module says of its texts: sentence_bert_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.tokenizer_files import optional_object
from astra_mpi.convert.tokenizer_keys import HARMLESS, READ

#: the first that is there and not empty
_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: without effect on `encode`: how it computes, and settings of encode_query and encode_document only
_HARMLESS = ("unpad_inputs", "query_length", "document_length", "query_expansion")
_MODEL = ("torch_dtype", "dtype", "attn_implementation", "trust_remote_code", "low_cpu_mem_usage")
_CONFIG = ("trust_remote_code", "use_cache")
#: of the tokenizer's call, and where they lead
_CALL = {"padding": (True, "longest"), "truncation": (True, "longest_first"), "return_tensors": ("pt",)}
#: settings of the classes, and of the loading, that may stand in processor_kwargs
_SETTINGS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "legacy", "trim_offsets",
)  # fmt: skip


@dataclass(frozen=True)
class SentenceText:
    """Texts as the module wants them."""

    max_length: float | None = None  # instead of the tokenizer's
    lower_case: bool = False  # texts are put into lower case first
    overrides: dict[str, Any] | None = None  # of tokenizer_config.json
    left_aside: tuple[str, ...] = ()


def read_sentence_text(folder: Path) -> SentenceText:
    """The settings of the Transformer module in this folder. InputError names file and key."""
    path = next((folder / name for name in _FILES if optional_object(folder / name)), folder / _FILES[0])
    given = optional_object(path)
    new = {"model_args": "model_kwargs", "tokenizer_args": "processor_kwargs", "config_args": "config_kwargs"}
    for old, name in new.items():
        if old in given:
            given[name] = given.pop(old)
    _check_task(path, given)
    _check_keys(path, given, "model_kwargs", _MODEL)
    _check_keys(path, given, "config_kwargs", _CONFIG)
    overrides = {k: v for k, v in _object(path, given, "processor_kwargs").items() if k != "trust_remote_code"}
    unknown = [key for key in overrides if key not in READ and key not in HARMLESS and key not in _SETTINGS]
    require(not unknown, f"{path}: processor_kwargs (tokenizer_args) has {', '.join(unknown)}, which is not supported")
    length = given.get("max_seq_length")
    if "model_max_length" in overrides:
        length = overrides.pop("model_max_length") or float("inf")
    length = _call_length(path, given, length)
    known = length is None or (type(length) in (int, float) and length > 0)
    require(known, f"{path}: max_seq_length = {length!r} must be a positive integer")
    read = {"max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name"}
    read |= {"processing_kwargs", *new.values()}
    other = [f"{path.name}: {key} (not read by encode)" for key in _HARMLESS if given.get(key) is not None]
    other += [f"{path.name}: {key} (not known)" for key in sorted(set(given) - read - set(_HARMLESS))]
    return SentenceText(length, bool(given.get("do_lower_case", False)), overrides, tuple(other))


def _object(path: Path, given: dict[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key) or {}
    require(isinstance(value, dict), f"{path}: {key} = {value!r} is not an object")
    return dict(value)


def _check_task(path: Path, given: dict[str, Any]) -> None:
    """InputError unless text goes forward through the model and its last hidden states come out."""
    task = given.get("transformer_task", "feature-extraction")
    require(task == "feature-extraction", f"{path}: transformer_task = {task!r} is not supported")
    tokenizer = given.get("tokenizer_name_or_path")
    require(tokenizer is None, f"{path}: tokenizer_name_or_path = {tokenizer!r} is not supported; copy its files here")
    if "modality_config" not in given:
        return
    config = _object(path, given, "modality_config")
    text = config.get("text")
    plain = isinstance(text, dict) and text.get("method") == "forward"
    plain = (
        plain and text is not None and text.get("method_output_name") in ("last_hidden_state", ["last_hidden_state"])
    )
    require(plain and "message" not in config, f"{path}: modality_config = {config!r} is not supported")
    name = given.get("module_output_name")
    require(name == "token_embeddings", f"{path}: module_output_name = {name!r} is not supported")


def _check_keys(path: Path, given: dict[str, Any], name: str, harmless: tuple[str, ...]) -> None:
    others = sorted(set(_object(path, given, name)) - set(harmless))
    require(
        not others, f"{path}: {name} ({name.replace('kwargs', 'args')}) has {', '.join(others)}, not supported here"
    )


def _call_length(path: Path, given: dict[str, Any], length: Any) -> Any:
    """The longest text by processing_kwargs, the arguments of the tokenizer's call. InputError on others of them."""
    for part, settings in _object(path, given, "processing_kwargs").items():
        if part not in ("common", "text") or not settings:
            continue  # of images, sounds and chats, or not read
        require(isinstance(settings, dict), f"{path}: processing_kwargs.{part} is not an object")
        for key, value in settings.items():
            same = (part, key) == ("text", "max_length") or value in _CALL.get(key, ())
            require(same, f"{path}: processing_kwargs.{part}.{key} = {value!r} is not supported")
        length = settings.get("max_length", length)
    return length
