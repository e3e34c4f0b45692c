"""Keys of tokenizer_config.json: read, refused, or harmless and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.tokenizer_classes import CLASSES, TokenizerClass
from astra_mpi.convert.tokenizer_files import CONFIG, NAMED
from astra_mpi.errors import InputError

#: read for every class
READ = (
    *NAMED,
    "tokenizer_class", "model_max_length", "max_len", "truncation_side", "split_special_tokens",
    "clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "add_bos_token", "add_eos_token", "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder",
    "model_input_names", "fast_tokenizer_files", "init_inputs", "auto_map",
)  # fmt: skip

#: without effect on the tokens of a text, and why
HARMLESS = {
    "padding_side": "nothing is padded; where it is, the reference's answer depends on what else is in a batch",
    "pad_token_type_id": "nothing is padded",
    "pad_to_multiple_of": "nothing is padded",
    "max_length": "an argument of a call, which the reference does not take from here",
    "stride": "of overflowing pieces, which are not asked for",
    "truncation_strategy": "of pairs of texts",
    "chat_template": "texts are taken as they are; only apply_chat_template reads it",
    "chat_control_tokens": "read with chat_template",
    "response_template": "read with chat_template",
    "response_schema": "read with chat_template",
    "use_default_system_prompt": "read with chat_template",
    "backend": "says which library made the file",
    "is_local": "says where the folder was",
    "local_files_only": "says where the folder was",
    "name_or_path": "says where the folder was",
    "special_tokens_map_file": "says where the folder was",
    "tokenizer_file": "replaced by the folder's own file",
    "vocab_file": "replaced by the folder's own file",
    "merges_file": "replaced by the folder's own file",
    "processor_class": "of models that take more than text",
    "verbose": "of log messages",
    "errors": "of the older tokenizers in Python",
    "sp_model_kwargs": "of the older tokenizers in Python",
    "do_basic_tokenize": "of the older tokenizers in Python",
    "never_split": "of the older tokenizers in Python",
    "use_fast": "there are only fast ones now",
    "from_slow": "there are only fast ones now",
    "fix_mistral_regex": "of the Mistral families",
    "_commit_hash": "says where the folder was",
}

#: arguments of the classes that no folder has a use for, and that would replace what is read from its files
REPLACING = (
    "vocab", "merges", "tokenizer_object", "gguf_file", "post_processor", "tokenizer_padding", "tokenizer_truncation",
    "_json_truncation", "_json_padding", "_spm_precompiled_charsmap", "model_specific_special_tokens", "unk_id",
    "model_specific",
)  # fmt: skip


def check_keys(path: Path, given: Mapping[str, Any]) -> None:
    """InputError on what only code in the folder, or another version, could make of a key; it names the key."""
    custom = given.get("auto_map")
    custom = custom if isinstance(custom, list) else isinstance(custom, dict) and custom.get("AutoTokenizer")
    require(
        not custom, f"{path}: auto_map names code in the folder, {custom}, which is never run; save a tokenizer.json"
    )
    for key in REPLACING:
        require(key not in given, f"{path}: {key} is not supported; leave it out, as save_pretrained does")
    require(not given.get("init_inputs"), f"{path}: init_inputs is not supported; leave it out")
    files = given.get("fast_tokenizer_files", ["tokenizer.json"])
    require(
        files == ["tokenizer.json"], f"{path}: fast_tokenizer_files = {files!r} is not supported; keep tokenizer.json"
    )
    names = given.get("model_input_names", ["input_ids", "attention_mask"])
    known = isinstance(names, list) and {"input_ids", "attention_mask"} <= set(names)
    require(known, f"{path}: model_input_names = {names!r} leaves out input_ids or attention_mask; put them in")


def checked(path: Path, settings: Mapping[str, Any], key: str, kinds: tuple[type, ...], default: Any) -> Any:
    """A setting of these types, or the default where it is not given. InputError names file and key."""
    value = settings.get(key, default)
    names = ["null" if kind is type(None) else kind.__name__ for kind in kinds]
    if type(value) not in kinds:
        raise InputError(f"{path}: {key} = {value!r} is of the wrong type; give {' or '.join(names)}")
    return value


def left_aside(folder: Path, given: Iterable[str], chosen: TokenizerClass) -> list[str]:
    """Keys that change nothing here and that a reader might look for, with the reason."""
    others = {key for kind in CLASSES for key in kind.own}
    found = []
    for key in sorted(set(given) - set(READ) - set(chosen.own)):
        if key == "chat_template":
            found.append(f"{CONFIG}: {key} ({HARMLESS[key]})")
        elif key in others:
            found.append(f"{CONFIG}: {key} (not read by {chosen.name})")
        elif key not in HARMLESS and not key.endswith("_token"):
            found.append(f"{CONFIG}: {key} (not known)")
    if (folder / "chat_template.jinja").is_file() or (folder / "additional_chat_templates").is_dir():
        found.append(f"chat_template.jinja ({HARMLESS['chat_template']})")
    return found
