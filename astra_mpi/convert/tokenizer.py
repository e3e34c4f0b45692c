"""A folder's tokenizer as `AutoTokenizer.from_pretrained` of `transformers` 5 makes it, without `transformers`."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import load_settings
from astra_mpi.config import require
from astra_mpi.convert.tokenizer_classes import BACKEND, CLASSES, Parts, TokenizerClass, class_of
from astra_mpi.convert.tokenizer_files import CONFIG, NAMED, optional_object, read_settings
from astra_mpi.convert.tokenizer_keys import check_keys, checked, left_aside
from astra_mpi.errors import InputError
from astra_mpi.inputs.text import fast_tokenizer, refusing

FILE = "tokenizer.json"
#: classes of the families whose folders name none; others take tokenizer.json as it is
_OWN = {
    **dict.fromkeys(("bert", "distilbert", "electra", "nomic_bert"), "BertTokenizer"),
    "gpt2": "GPT2Tokenizer",
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer"),
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "mpnet": "MPNetTokenizer",
}


@dataclass(frozen=True)
class FolderTokenizer:
    """What was made of a folder's tokenizer files."""

    fast: Any | None  # tokenizers.Tokenizer; None: there are no files that its class could be made of
    class_name: str
    max_length: float | None  # longest text, special tokens included
    truncation_side: str = "right"  # or "left": where a longer text is cut
    split_special_tokens: bool = False  # special tokens that a text spells are ordinary characters
    replaced: tuple[str, ...] = ()  # parts of tokenizer.json that the class replaces by its own
    left_aside: tuple[str, ...] = ()  # keys that change nothing
    special_tokens: dict[str, str] = field(default_factory=dict)  # texts of the named ones, as chat templates use them
    token_types: bool = False  # the model is told the types of tokens


def read_tokenizer(folder: Path, config: Mapping[str, Any], overrides: dict[str, Any]) -> FolderTokenizer:
    """The tokenizer of a folder with this config.json.

    overrides: of sentence-transformers, instead of keys of tokenizer_config.json. InputError names file and key.
    """
    given = optional_object(folder / CONFIG)
    check_keys(folder / CONFIG, given | overrides)
    text = _text(folder / FILE)
    chosen = _choose(folder, given, config, text)
    whole = None if text is None else json.loads(text)
    settings = read_settings(folder, whole, overrides)
    length = _length(folder, settings)
    if whole is None and not (chosen.files and all((folder / name).is_file() for name in chosen.files)):
        return FolderTokenizer(None, chosen.name, length)
    original = None if whole is None else _parsed(whole, chosen, folder / FILE)
    dropout = ((whole or {}).get("model") or {}).get("dropout")
    require(not dropout, f"{folder / FILE}: model.dropout = {dropout} makes tokens at random; set it to null")
    side = _side(folder, settings, original)
    with refusing(f"{folder}: no {chosen.name} can be made of its tokenizer files ({{}}); save the tokenizer again"):
        fast = _made(folder, chosen, settings, whole, original)
        _clean_up(fast, settings)
    split = bool(settings.get("split_special_tokens", False))
    replaced = _replaced(original, fast) if original is not None and chosen.build is not None else []
    aside = left_aside(folder, {*given, *overrides}, chosen)
    special = {name: str(token) for name, token in _named(chosen, settings).items() if token is not None}
    names = settings.get("model_input_names")
    typed = chosen.typed if names is None else "token_type_ids" in names
    return FolderTokenizer(fast, chosen.name, length, side, split, tuple(replaced), tuple(aside), special, typed)


def _named(chosen: TokenizerClass, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens with a name of their own."""
    return {k: v for k, v in chosen.defaults.items() if k in NAMED} | {k: settings[k] for k in NAMED if k in settings}


def _length(folder: Path, settings: Mapping[str, Any]) -> float | None:
    length: Any = settings.get("model_max_length")
    length = settings.get("max_len") if length is None else length
    known = length is None or (type(length) in (int, float) and length > 0)
    require(known, f"{folder / CONFIG}: model_max_length = {length!r} must be a positive integer")
    return None if length is None else float(length)


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    load_settings(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise InputError(f"{path} is not UTF-8 at byte {exc.start}; download it again") from exc


def _parsed(whole: dict[str, Any], chosen: TokenizerClass, path: Path) -> Any:
    """tokenizer.json as a tokenizer; for a class that builds its own model, without words."""
    model = whole.get("model")
    if chosen.build is not None and isinstance(model, dict) and model.get("type") not in (None, "Unigram"):
        model = model | {"vocab": {}} | ({"merges": []} if model["type"] == "BPE" else {})
        whole = whole | {"model": model, "added_tokens": []}
    try:
        return fast_tokenizer(json.dumps(whole))
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc


def _choose(folder: Path, given: dict[str, Any], config: Mapping[str, Any], text: str | None) -> TokenizerClass:
    """The class that the folder's files name, or that its family has."""
    path, name = folder / CONFIG, given.get("tokenizer_class")
    if name is None:
        path, name = folder / "config.json", config.get("tokenizer_class")
    if name is None:
        name = _OWN.get(str(config.get("model_type")), BACKEND.name)
    chosen = class_of(name) if isinstance(name, str) else None
    if chosen is None:
        known = ", ".join(kind.name for kind in CLASSES)
        raise InputError(
            f"{path}: tokenizer_class = {name!r} is not supported (known: {known}); in Python, "
            f"AutoTokenizer.from_pretrained(FOLDER).backend_tokenizer.save('{FILE}') writes what it makes of the "
            f"folder, and tokenizer_class = '{BACKEND.name}' takes that as it is"
        )
    # transformers: its pre-tokenizer is Metaspace, so that a file with bytes is taken for one of another class
    return BACKEND if chosen.name == "LlamaTokenizer" and '"ByteLevel"' in (text or "") else chosen


def _made(folder: Path, chosen: TokenizerClass, settings: dict[str, Any], whole: Any, original: Any) -> Any:
    """The tokenizer with all its tokens and what it puts around a text."""
    named = _named(chosen, settings)
    own = {}
    for key in chosen.own:
        kinds = (bool, type(None)) if key in chosen.optional or chosen.defaults[key] is None else (bool,)
        own[key] = checked(folder / CONFIG, settings, key, kinds, chosen.defaults[key])
    if chosen.build is None:
        fast = original
    else:
        fast = chosen.build(own | named, _parts(folder, chosen, whole))
        if original is not None and original.post_processor is not None:
            fast.post_processor = original.post_processor
    if original is not None and original.padding is not None:
        named.setdefault("pad_token", original.padding["pad_token"])
    named |= settings["model_specific"]
    extra = settings.get("extra_special_tokens", list(chosen.extra)) or []
    explicit = "add_bos_token" in settings or "add_eos_token" in settings
    update = explicit or fast.post_processor is None
    _add_tokens(fast, settings["added_tokens_decoder"], named, extra)
    if update:
        _put_ends(fast, settings, named)
    if chosen.finish is not None:
        every = list(dict.fromkeys(str(token) for token in [*named.values(), *extra] if token is not None))
        unknown = _id(fast, named.get("unk_token"), None)
        chosen.finish(fast, own | named | {"every_special": every}, lambda name: _id(fast, named.get(name), unknown))
    return fast


def _id(fast: Any, token: Any, unknown: int | None) -> int | None:
    """The id of a special token, or that of unknown ones."""
    found = None if token is None else fast.token_to_id(str(token))
    return unknown if found is None else found


def _parts(folder: Path, chosen: TokenizerClass, whole: Any) -> Parts:
    from tokenizers import models

    if whole is None:
        paths = [str(folder / name) for name in chosen.files]
        if chosen.model == "BPE":
            return Parts(*models.BPE.read_file(*paths))
        return Parts(models.WordPiece.read_file(*paths))
    model = whole.get("model") or {}
    vocab = model.get("vocab")
    if chosen.model == "Unigram":
        vocab = [tuple(entry) for entry in vocab] if isinstance(vocab, list) else vocab
    elif isinstance(vocab, list):
        vocab = {entry[0] if isinstance(entry, list) else entry: i for i, entry in enumerate(vocab)}
    merges = model.get("merges", []) if chosen.model == "BPE" else []
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in merges]
    return Parts(vocab, merges, _charsmap(whole.get("normalizer")))


def _charsmap(normalizer: Any) -> bytes | None:
    parts = normalizer.get("normalizers", [normalizer]) if isinstance(normalizer, dict) else []
    found = (part["precompiled_charsmap"] for part in parts if part.get("type") == "Precompiled")
    return next((base64.b64decode(text) for text in found if text is not None), None)


def _add_tokens(fast: Any, added: dict[int, Any], named: dict[str, Any], extra: list[Any]) -> None:
    """Add what the tokenizer does not have yet; their order decides on the ids."""
    from tokenizers import AddedToken

    there = fast.get_added_tokens_decoder()
    reprs = {repr(token) for token in there.values()}
    new = [token for _, token in sorted(added.items()) if repr(token) not in reprs]
    texts = {token.content for token in there.values()} | {str(token) for token in new}
    for token in [*_in_order(named), *extra]:
        if token is not None and str(token) not in texts and token not in new:
            new.append(token)
    special = {str(token) for token in named.values() if token}
    for i, token in enumerate(new):
        if isinstance(token, str):
            new[i] = AddedToken(token, special=True)
        elif not token.special and str(token) in special:
            token.special = True
    if new:
        fast.add_tokens(new)


def _in_order(named: dict[str, Any]) -> list[Any]:
    return [named.get(name) for name in NAMED] + [token for name, token in named.items() if name not in NAMED]


def _put_ends(fast: Any, settings: dict[str, Any], named: dict[str, Any]) -> None:
    """The tokens around a text as add_bos_token and add_eos_token have it."""
    from tokenizers.processors import TemplateProcessing

    unknown = _id(fast, named.get("unk_token"), None)
    wanted = {end: named.get(f"{end}_token") if settings.get(f"add_{end}_token") else None for end in ("bos", "eos")}
    bos, eos = (None if token is None else str(token) for token in wanted.values())
    single = " ".join([f"{bos}:0"] * (bos is not None) + ["$A:0"] + [f"{eos}:0"] * (eos is not None))
    ids = [(token, _id(fast, token, unknown)) for token in (bos, eos) if token is not None]
    fast.post_processor = TemplateProcessing(single=single, special_tokens=ids)


#: what clean_up_tokenization_spaces replaces, in this order
_SPACES = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


def _clean_up(fast: Any, settings: dict[str, Any]) -> None:
    """Let the decoder close up spaces, where the settings ask for it and `transformers` does it."""
    from tokenizers import decoders

    forced = settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    pairs = type(fast.model).__name__ == "BPE"
    if not settings.get("clean_up_tokenization_spaces") or (pairs and not forced):
        return
    spaced = decoders.WordPiece(prefix="\0\0", cleanup=False)  # as without a decoder: a space between tokens
    first = spaced if fast.decoder is None else fast.decoder
    closed = [decoders.Replace(text, text.strip()) for text in _SPACES]
    fast.decoder = decoders.Sequence([first, decoders.Fuse(), *closed])


def _side(folder: Path, settings: dict[str, Any], original: Any) -> str:
    there = original.truncation if original is not None else None
    side: Any = settings.get("truncation_side", there["direction"] if there else "right")
    require(side in ("right", "left"), f"{folder / CONFIG}: truncation_side = {side!r}; give right or left")
    return str(side)


def _replaced(original: Any, fast: Any) -> list[str]:
    """Parts of tokenizer.json that text goes through and that are others now."""
    original.no_padding()
    one, two = json.loads(original.to_str()), json.loads(fast.to_str())
    parts = [name for name in ("normalizer", "pre_tokenizer") if _bare(one[name]) != _bare(two[name])]
    models = ({k: v for k, v in part["model"].items() if k not in ("vocab", "merges")} for part in (one, two))
    parts += ["model"] if _bare(next(models)) != _bare(next(models)) else []
    return parts + (["post_processor"] if original.encode("").ids != fast.encode("").ids else [])


def _bare(part: Any) -> Any:
    """A part without what has no effect on ids."""
    if isinstance(part, dict):
        return {k: _bare(v) for k, v in part.items() if k not in ("trim_offsets",) and v not in (None, "", False)}
    return [_bare(entry) for entry in part] if isinstance(part, list) else part
