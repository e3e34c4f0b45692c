"""How a Hugging Face folder turns text into tokens, as the model file keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import load_settings
from astra_mpi.convert.chat import read_chat_template
from astra_mpi.convert.sentence import SentenceEncoder
from astra_mpi.convert.sentence_text import SentenceText, read_sentence_text
from astra_mpi.convert.tokenizer import FILE, FolderTokenizer, read_tokenizer
from astra_mpi.convert.tokenizer_classes import BACKEND
from astra_mpi.convert.tokenizer_files import CONFIG, damaged
from astra_mpi.convert.tokenizer_keys import HARMLESS
from astra_mpi.errors import InputError
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder

#: vocabularies that no tokenizer is made of here
_OTHER_FILES = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "tekken.json", "vocab.txt",
    "vocab.json",
)  # fmt: skip


@dataclass(frozen=True)
class FolderText:
    """tokenizer: contents of a tokenizer.json, or None. preprocess: /preprocess of the model file."""

    tokenizer: str | None
    preprocess: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # for the user
    left_aside: list[str] = field(default_factory=list)  # keys without effect here


def read_text_settings(folder: Path, config: Any, encoder: SentenceEncoder | None) -> FolderText:
    """Tokenizer, longest text and prompts of a folder for a model of this config (ours). InputError names file and key.

    folder: of the Transformer. encoder: what modules.json says, if there is one.
    """
    with damaged(folder):
        sentence = read_sentence_text(folder) if encoder is not None else SentenceText()
        found = read_tokenizer(folder, load_settings(folder / "config.json"), sentence.overrides or {})
    max_tokens, notes = _max_tokens(folder, config.max_positions, sentence.max_length, found.max_length)
    preprocess: dict[str, Any] = {"max_tokens": max_tokens}
    aside = list(sentence.left_aside)
    if encoder is not None:
        aside += encoder.left_aside
        if encoder.prompts:
            preprocess |= {"prompts": encoder.prompts, "default_prompt": encoder.default_prompt}
    if found.fast is None:
        return FolderText(None, preprocess, [*notes, _without(folder, found.class_name)], aside)
    contents = _contents(found.fast, found.truncation_side, sentence, max_tokens)
    try:
        beyond = _beyond(contents, config.vocab_size)
    except InputError as exc:
        plain = _as_it_stands(folder / FILE, found, sentence, max_tokens, config.vocab_size)
        if plain is None:
            raise InputError(f"{folder / FILE if (folder / FILE).is_file() else folder}: {exc}") from exc
        contents = plain
        beyond = [f"{FILE} was taken as it stands; as transformers makes it {found.class_name}, {exc}"]
    preprocess["tokenizer_class"] = found.class_name
    left = [*aside, *found.left_aside]
    family = FAMILIES.get(getattr(config, "family", ""))
    if family is not None and issubclass(family, Decoder):
        template, said = read_chat_template(folder)
        notes += said
        if template is not None:
            preprocess |= {"chat_template": template, "special_tokens": found.special_tokens}
            left = [key for key in left if not key.endswith(f"({HARMLESS['chat_template']})")]
    if found.token_types and getattr(config, "type_vocab", 0) > 1:
        preprocess["token_types"] = True
    if found.split_special_tokens:
        preprocess["split_special_tokens"] = True
    if found.replaced:
        notes.append(
            f"{folder / FILE}: {', '.join(found.replaced)} gave way to what {found.class_name} makes of {CONFIG}, as in"
            f" transformers 5; tokenizer_class = '{BACKEND.name}' there would keep {FILE} as it is"
        )
    return FolderText(contents, preprocess, notes + beyond, left)


def _max_tokens(folder: Path, max_positions: int, wanted: float | None, own: float | None) -> tuple[int, list[str]]:
    """-> (longest text the model is meant for, and no longer than its positions; notes).

    wanted: of sentence-transformers, which comes before the tokenizer's own.
    """
    length = own if wanted is None else wanted
    notes = []
    if wanted is not None and max_positions < wanted < float("inf"):
        note = f"{folder}: max_seq_length {wanted} is more than the model's {max_positions} positions"
        notes.append(f"{note}; longer texts are cut to these")
    return int(min(max_positions if length is None else length, max_positions)), notes


def _contents(fast: Any, side: str, sentence: SentenceText, max_tokens: int) -> str:
    if sentence.lower_case:
        _lower(fast)
    fast.no_padding()
    fast.no_truncation()
    if side != "right":  # which the model file's reader takes from here
        fast.enable_truncation(max_tokens, direction=side)
    contents: str = fast.to_str()
    return contents


def _as_it_stands(
    path: Path, found: FolderTokenizer, sentence: SentenceText, max_tokens: int, vocab_size: int
) -> str | None:
    """tokenizer.json without what transformers adds to it, where only that gives tokens beyond the vocabulary."""
    if not path.is_file():
        return None
    from tokenizers import Tokenizer as FastTokenizer

    contents = _contents(FastTokenizer.from_file(str(path)), found.truncation_side, sentence, max_tokens)
    try:
        _beyond(contents, vocab_size)
    except InputError:
        return None
    return contents


def _lower(fast: Any) -> None:
    """Put texts into lower case first, unless a step of its own does it."""
    from tokenizers.normalizers import Lowercase, Sequence

    own: Any = fast.normalizer
    several = isinstance(own, Sequence)
    steps = [*own] if several else [] if own is None else [own]
    if not any(isinstance(step, Lowercase) for step in steps):
        fast.normalizer = Sequence([Lowercase(), *steps])


def _beyond(contents: str, vocab_size: int) -> list[str]:
    """A note on tokens that the model has no row for. InputError if ordinary texts give some."""
    tokenizer = Tokenizer(contents)
    tokenizer.check_fits(vocab_size)
    names = tokenizer.beyond(vocab_size)
    if not names:
        return []
    some = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
    return [
        f"{len(names)} of the tokenizer's tokens ({some}) lie beyond the model's {vocab_size}; only a text that spells"
        " one gives it, and is refused"
    ]


def _without(folder: Path, class_name: str) -> str:
    there = [name for name in _OTHER_FILES if (folder / name).is_file()]
    only = f", only {', '.join(there)}, of which no {class_name} is made here" if there else ""
    return (
        f"{folder} has no {FILE}{only}, so the model will take only token ids; "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) makes one"
    )


def usage(config: Any, preprocess: Mapping[str, Any] | None, tokenizer: bool, left_aside: list[str]) -> dict[str, str]:
    """What a model file says of its texts, in words: name -> value. {} for models of images."""
    settings = preprocess or {}
    if not hasattr(config, "vocab_size"):
        return {}
    told = {}
    if getattr(config, "n_classes", 0):
        told["classes"] = ", ".join(config.labels) or str(config.n_classes)
        told["probabilities"] = config.probabilities
        told["pairs"] = "told apart by token types" if settings.get("token_types") else "yes"
    elif hasattr(config, "pooling"):
        size = getattr(config, "embedding_size", 0)
        told["pooling"] = config.pooling + (f", the first {size} numbers of {config.d_model}" if size else "")
        told["normalisation"] = "to length 1" if config.normalize else "none"
        prompts, default = settings.get("prompts") or {}, settings.get("default_prompt")
        names = [f"{name} {text!r}" + (" (default)" if name == default else "") for name, text in prompts.items()]
        told["prompts"] = ", ".join(names) or "none"
    if (template := settings.get("chat_template")) is not None:
        several = isinstance(template, dict)
        told["chat template"] = ", ".join(sorted(template)) if several else "yes"
    told["maximum length"] = f"{settings.get('max_tokens', config.max_positions)} tokens"
    split = ", special tokens spelled in a text are ordinary characters" if settings.get("split_special_tokens") else ""
    told["tokenizer"] = settings.get("tokenizer_class", "yes") + split if tokenizer else "none: token ids only"
    told["left aside"] = "; ".join(left_aside) or "nothing"
    return told
