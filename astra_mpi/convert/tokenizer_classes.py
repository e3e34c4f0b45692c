"""The tokenizer classes of `transformers`: what each builds of a vocabulary and of the settings beside it.

A class takes words and merges from tokenizer.json and builds all else anew, so that its own settings win over the
normalizer and pre-tokenizer of that file. `TokenizersBackend` takes the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Parts:
    """What a class is built of: contents of tokenizer.json, or of vocab.txt, vocab.json and merges.txt."""

    vocab: Any  # token -> id, or for a unigram model [(token, score)]
    merges: list[tuple[str, str]] = field(default_factory=list)
    charsmap: bytes | None = None  # of a normalizer made by SentencePiece


@dataclass(frozen=True)
class TokenizerClass:
    """build: settings and parts -> `tokenizers.Tokenizer`; finish: what comes after its special tokens are known.

    `finish` is given the tokenizer, the settings, and what tells the id of a special token by its name.
    """

    name: str
    model: str  # the kind of its vocabulary
    defaults: Settings  # what its own settings and special tokens are where nothing is said
    build: Callable[[Settings, Parts], Any] | None = None  # None: tokenizer.json as it is
    finish: Callable[[Any, Settings, Callable[[str], Any]], None] | None = None
    files: tuple[str, ...] = ()  # of which it can be built where there is no tokenizer.json
    optional: tuple[str, ...] = ()  # settings that may be null
    typed: bool = False  # it tells the model the types of its tokens, unless model_input_names says otherwise
    aliases: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()  # its additional special tokens where nothing is said

    @property
    def own(self) -> tuple[str, ...]:
        """Settings that only some classes read."""
        return tuple(key for key in self.defaults if not key.endswith("_token"))


def _bert(settings: Settings, parts: Parts) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    fast = Tokenizer(models.WordPiece(parts.vocab, unk_token=str(settings["unk_token"])))
    fast.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings["tokenize_chinese_chars"],
        strip_accents=settings["strip_accents"],
        lowercase=settings["do_lower_case"],
    )
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece(prefix="##")
    return fast


def _bert_ends(fast: Any, settings: Settings, id_of: Callable[[str], Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    cls, sep = str(settings["cls_token"]), str(settings["sep_token"])
    ids = [(cls, id_of("cls_token")), (sep, id_of("sep_token"))]
    fast.post_processor = TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1", special_tokens=ids
    )


def _byte_level(settings: Settings, parts: Parts) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    fast = Tokenizer(_byte_pairs(models, parts))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=settings["add_prefix_space"])
    fast.decoder = decoders.ByteLevel()
    return fast


def _byte_pairs(models: Any, parts: Parts) -> Any:
    return models.BPE(
        vocab=parts.vocab, merges=parts.merges, continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
    )


def _roberta_ends(fast: Any, settings: Settings, id_of: Callable[[str], Any]) -> None:
    from tokenizers.processors import RobertaProcessing

    sep, cls = ((str(settings[name]), id_of(name)) for name in ("sep_token", "cls_token"))
    fast.post_processor = RobertaProcessing(sep, cls, settings["trim_offsets"], settings["add_prefix_space"])


def _llama(settings: Settings, parts: Parts) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    prefix = settings["add_prefix_space"] is None or settings["add_prefix_space"]
    scheme = ("always" if settings["legacy"] else "first") if prefix else "never"
    fast = Tokenizer(models.BPE(vocab=parts.vocab, merges=parts.merges, fuse_unk=True, byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence(steps + ([decoders.Strip(content=" ", left=1)] if prefix else []))
    return fast


def _gemma(settings: Settings, parts: Parts) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    unknown = str(settings["unk_token"])
    fast = Tokenizer(
        models.BPE(vocab=parts.vocab, merges=parts.merges, fuse_unk=True, unk_token=unknown, byte_fallback=True)
    )
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return fast


#: how Qwen2 splits a text before its byte pairs
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _qwen2(settings: Settings, parts: Parts) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    fast = Tokenizer(_byte_pairs(models, parts))
    fast.decoder = decoders.ByteLevel()
    fast.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated", invert=False)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings["add_prefix_space"]), use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return fast


def _qwen2_specials(fast: Any, settings: Settings, id_of: Callable[[str], Any]) -> None:
    from tokenizers import AddedToken

    fast.add_tokens([AddedToken(token, special=True) for token in settings["every_special"]])


def _mpnet_ends(fast: Any, settings: Settings, id_of: Callable[[str], Any]) -> None:
    _roberta_ends(fast, {**settings, "trim_offsets": True, "add_prefix_space": False}, id_of)


def _camembert(settings: Settings, parts: Parts) -> Any:
    unknown = str(settings["unk_token"])
    return _metaspace(settings, parts, next((i for i, (token, _) in enumerate(parts.vocab) if token == unknown), 0))


def _xlm_roberta(settings: Settings, parts: Parts) -> Any:
    return _metaspace(settings, parts, 3)


def _metaspace(settings: Settings, parts: Parts, unknown: int) -> Any:
    """Unigram pieces of words with a mark in front of each; unknown: the id of what is none of them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    fast = Tokenizer(models.Unigram(vocab=parts.vocab, unk_id=unknown, byte_fallback=False))
    if parts.charsmap is not None:
        fast.normalizer = normalizers.Precompiled(parts.charsmap)
    scheme = "always" if settings["add_prefix_space"] else "never"
    spaces = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme)
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    fast.decoder = decoders.Metaspace(replacement="▁", prepend_scheme=scheme)
    return fast


def _xlm_roberta_ends(fast: Any, settings: Settings, id_of: Callable[[str], Any]) -> None:
    from tokenizers.processors import TemplateProcessing

    bos, eos = str(settings["bos_token"]), str(settings["eos_token"])
    ids = [(bos, id_of("bos_token")), (eos, id_of("eos_token"))]
    fast.post_processor = TemplateProcessing(
        single=[bos, "$A", eos], pair=[bos, "$A", eos, eos, "$B", eos], special_tokens=ids
    )


_BERT: dict[str, Any] = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}
_BERT |= {name: f"[{name[:-6].upper()}]" for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")}
_MPNET: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
_MPNET |= {"pad_token": "<pad>", "mask_token": "<mask>"}
_END = "<|endoftext|>"
_XLM: dict[str, Any] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
}
_XLM |= {"pad_token": "<pad>", "mask_token": "<mask>"}
_GPT2: dict[str, Any] = {
    "add_prefix_space": False,
    "unk_token": _END,
    "bos_token": _END,
    "eos_token": _END,
    "pad_token": None,
}
_LLAMA: dict[str, Any] = {
    "add_prefix_space": None,
    "legacy": False,
    "unk_token": "<unk>",
    "bos_token": "<s>",
    "eos_token": "</s>",
}
_GEMMA: dict[str, Any] = {f"{name}_token": f"<{name}>" for name in ("unk", "bos", "eos", "pad", "mask")}
_QWEN: dict[str, Any] = {
    "add_prefix_space": None,
    "unk_token": _END,
    "bos_token": None,
    "eos_token": _END,
    "pad_token": _END,
}
_PAIRS = ("vocab.json", "merges.txt")

BACKEND = TokenizerClass("TokenizersBackend", "", {}, aliases=("PreTrainedTokenizerFast", "PreTrainedTokenizer"))

CLASSES = (
    BACKEND,
    TokenizerClass(
        "BertTokenizer", "WordPiece", _BERT, _bert, _bert_ends, ("vocab.txt",), ("strip_accents",),
        aliases=("ElectraTokenizer", "MobileBertTokenizer", "LxmertTokenizer"), typed=True,
    ),
    TokenizerClass(
        "DistilBertTokenizer", "WordPiece", _BERT, _bert, _bert_ends, ("vocab.txt",), ("strip_accents",),
    ),
    TokenizerClass(
        "MPNetTokenizer", "WordPiece", _BERT | _MPNET, _bert, _mpnet_ends, ("vocab.txt",), ("strip_accents",),
    ),
    TokenizerClass("GPT2Tokenizer", "BPE", _GPT2, _byte_level, files=_PAIRS),
    TokenizerClass("GemmaTokenizer", "BPE", _GEMMA, _gemma),
    TokenizerClass("LlamaTokenizer", "BPE", _LLAMA, _llama, optional=("add_prefix_space", "legacy")),
    TokenizerClass(
        "RobertaTokenizer", "BPE", _XLM | {"add_prefix_space": False, "trim_offsets": True}, _byte_level, _roberta_ends,
        _PAIRS,
    ),
    TokenizerClass("Qwen2Tokenizer", "BPE", _QWEN, _qwen2, _qwen2_specials, _PAIRS, optional=("add_prefix_space",)),
    TokenizerClass(
        "XLMRobertaTokenizer", "Unigram", _XLM | {"add_prefix_space": True}, _xlm_roberta, _xlm_roberta_ends
    ),
    TokenizerClass(
        "CamembertTokenizer", "Unigram", _XLM | {"add_prefix_space": True}, _camembert, _xlm_roberta_ends,
        extra=("<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"),
    ),
)  # fmt: skip


def class_of(name: str) -> TokenizerClass | None:
    """The class of this name, with or without Fast at its end, under this name; None if it is not one of these."""
    bare = name.removesuffix("Fast") if name != "PreTrainedTokenizerFast" else name
    found = next((c for c in CLASSES if bare in (c.name, *c.aliases)), None)
    return None if found is None else replace(found, name=bare)
