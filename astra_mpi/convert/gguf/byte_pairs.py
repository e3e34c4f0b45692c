"""Byte-level BPE (`tokenizer.ggml.model` = gpt2): how `tokenizer.ggml.pre` cuts a text before pairs are merged.

The names and their expressions are llama.cpp's (src/llama-vocab.cpp), which has them from the tokenizer.json of the
models; where it rewrote one for its own engine, the original stands here.
"""

from __future__ import annotations

from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.gguf.vocabulary import Vocabulary, added_tokens, around
from astra_mpi.errors import InputError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE_WORD, _SLASHED = r"[^\r\n\p{L}\p{N}]?", r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+|{_BEFORE_WORD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHED}"
_GPT4O = (
    rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_BEFORE_WORD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHED}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SEED = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"

#: expressions, one after the other, each of which cuts the pieces that the one before has left -> names
_CUTS: dict[tuple[str, ...], str] = {
    (_GPT2,): """gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en
        jina-v2-code roberta-bpe mpt olmo jais trillion granite-docling exaone4""",
    (r"\p{N}", _GPT2): "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2",
    (_LLAMA3,): """llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx smaug-bpe glm4
        chatglm-bpe minicpm5""",
    (_QWEN2,): "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    (_QWEN35,): "qwen35",
    (_TEKKEN,): "tekken",
    (_GPT4O,): "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m",
    (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3): "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"): "deepseek-coder",
    (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"): "falcon",
    (_BLOOM,): "bloom poro-chat gpt3-finnish",
    (_BLOOM, r"\p{N}"): "viking",
    (_BAILING,): "bailingmoe bailingmoe2 llada-moe",
    (_SEED,): "seed-coder",
}
CUTS: dict[str, tuple[str, ...]] = {name: cuts for cuts, names in _CUTS.items() for name in names.split()}
_OLD = ("", "default")
#: names whose tokens are taken whole where a piece is one, merges or not
_WHOLE = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
    *("tekken", "minicpm5", "granite-embed-multi-97m"),
)
#: names that put tokens before or behind a text, unless the file says otherwise
_BEGUN = _WHOLE[:-2]
_SEPARATED = ("jina-v1-en", "jina-v2-code", "roberta-bpe")


def byte_pair_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer.json. InputError on a way of cutting that is not known here."""
    metadata = vocabulary.metadata
    pre = metadata.text("tokenizer.ggml.pre", "")
    if pre not in CUTS:
        old = "it is of a time when files did not say how texts are cut; use a newer one" if pre in _OLD else ""
        raise InputError(
            f"{metadata.path}: tokenizer.ggml.pre = {pre!r} is not supported; {old or 'known are ' + ', '.join(CUTS)}"
        )
    merges = metadata.texts("tokenizer.ggml.merges")
    require(bool(merges), f"{metadata.path} has no tokenizer.ggml.merges; download it again")
    cuts = [{"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False} for cut in CUTS[pre]]
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    return {
        "version": "1.0",
        "added_tokens": added_tokens(vocabulary),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": around(*_ends(vocabulary, pre), vocabulary),
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre in _WHOLE,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": [split_merge(merge) for merge in merges],
        },
    }


def _ends(vocabulary: Vocabulary, pre: str) -> tuple[str | None, str | None]:
    """Tokens before and after a text."""
    flag = vocabulary.metadata.flag
    begun, ended = flag("tokenizer.ggml.add_bos_token", pre in _BEGUN), flag("tokenizer.ggml.add_eos_token", False)
    separated = flag("tokenizer.ggml.add_sep_token", pre in _SEPARATED)
    after = vocabulary.role("eos_token") if ended else vocabulary.role("sep_token") if separated else None
    return vocabulary.role("bos_token") if begun else None, after


def split_merge(merge: str) -> list[str]:
    """The two parts of a merge; the first may begin with a space."""
    cut = merge.find(" ", 1)
    return [merge[:cut], merge[cut + 1 :]] if cut > 0 else [merge, ""]
