"""The tokenizer of a GGUF file as tokenizer.json, tokenizer_config.json and generation_config.json."""

from __future__ import annotations

from typing import Any

from astra_mpi.convert.gguf.byte_pairs import byte_pair_tokenizer
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.pieces import sentence_piece_tokenizer, unigram_tokenizer, word_piece_tokenizer
from astra_mpi.convert.gguf.vocabulary import Vocabulary, read_vocabulary
from astra_mpi.errors import InputError

#: `tokenizer.ggml.model` -> what makes a tokenizer.json
_KINDS = {
    "gpt2": byte_pair_tokenizer,
    "llama": sentence_piece_tokenizer,
    "t5": unigram_tokenizer,
    "bert": word_piece_tokenizer,
}
#: `general.sampling.*` -> keys of generation_config.json
_SAMPLING = {"temp": "temperature", "top_p": "top_p", "min_p": "min_p", "penalty_repeat": "repetition_penalty"}
_TEMPLATE = "tokenizer.chat_template"


def text_files(metadata: Metadata) -> dict[str, dict[str, Any]]:
    """JSON files by name, as a folder has them. InputError on a tokenizer that is not known."""
    vocabulary = read_vocabulary(metadata)
    if vocabulary is None:
        return {"generation_config.json": _sampling(metadata)}
    if vocabulary.model not in _KINDS:
        raise InputError(
            f"{metadata.path}: tokenizer.ggml.model = {vocabulary.model!r} is not supported; known are"
            f" {', '.join(_KINDS)}"
        )
    made = _KINDS[vocabulary.model](vocabulary)
    return {
        "tokenizer.json": made,
        "tokenizer_config.json": _settings(vocabulary, made),
        "generation_config.json": {"eos_token_id": vocabulary.ends()} | _sampling(metadata),
    }


def _settings(vocabulary: Vocabulary, made: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    vocab = made["model"]["vocab"]
    texts = [entry[0] for entry in vocab] if isinstance(vocab, list) else list(vocab)
    settings |= {name: texts[i] for name, i in vocabulary.roles.items()}
    template = chat_template(vocabulary.metadata)
    return settings if template is None else settings | {"chat_template": template}


def chat_template(metadata: Metadata) -> str | list[dict[str, str]] | None:
    """The template, or several with their names as tokenizer_config.json has them."""
    template = metadata.text(_TEMPLATE, None)
    names = [name for name in metadata.texts("tokenizer.chat_templates") if name]
    others = {name: metadata.text(f"{_TEMPLATE}.{name}", None) for name in names}
    if template is None or not any(others.values()):
        return template
    every = {"default": template} | {name: text for name, text in others.items() if text is not None}
    return [{"name": name, "template": text} for name, text in every.items()]


def _sampling(metadata: Metadata) -> dict[str, Any]:
    """What the file asks of sampling."""
    found = {name: metadata.number(f"general.sampling.{key}", None) for key, name in _SAMPLING.items()}
    found["top_k"] = metadata.integer("general.sampling.top_k", None)
    asked = {name: value for name, value in found.items() if value is not None}
    return asked | ({"do_sample": True} if asked else {})
