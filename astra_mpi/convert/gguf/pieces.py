"""SentencePiece (`tokenizer.ggml.model` = llama or t5) and WordPiece (bert) as tokenizer.json."""

from __future__ import annotations

import base64
from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.gguf.byte_pairs import split_merge
from astra_mpi.convert.gguf.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    Vocabulary,
    added_tokens,
    around,
)

_SPACE = "▁"  # what stands for a space


def sentence_piece_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """A byte-pair encoding that joins, at each step, the neighbours whose union has the highest score; what is not
    in the vocabulary falls back to bytes."""
    merges = vocabulary.metadata.texts("tokenizer.ggml.merges")
    return _sentence_piece(vocabulary, *_ends(vocabulary, begun=True, ended=False)) | {
        "model": {
            "type": "BPE",
            "unk_token": _unknown(vocabulary),
            "fuse_unk": True,
            "byte_fallback": BYTE in vocabulary.kinds,
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": [split_merge(merge) for merge in merges] or _merges(vocabulary),
        },
    }


def unigram_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """The cut of a text whose tokens have the highest sum of scores."""
    unknown = _unknown(vocabulary)
    scored = zip(vocabulary.tokens, vocabulary.scores, strict=True)
    return _sentence_piece(vocabulary, *_ends(vocabulary, begun=False, ended=True)) | {
        "model": {
            "type": "Unigram",
            "unk_id": None if unknown is None else vocabulary.tokens.index(unknown),
            "byte_fallback": BYTE in vocabulary.kinds,
            "vocab": [[token, score] for token, score in scored],
        },
    }


def _sentence_piece(vocabulary: Vocabulary, before: str | None, after: str | None) -> dict[str, Any]:
    """tokenizer.json without its model: a space is put before a text unless the file says otherwise."""
    prefixed = vocabulary.metadata.flag("tokenizer.ggml.add_space_prefix", True)
    marks: list[dict[str, Any]] = [{"type": "Prepend", "prepend": _SPACE}] if prefixed else []
    marks.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    undone = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefixed else []
    decoders = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *undone,
    ]
    return {
        "version": "1.0",
        "added_tokens": added_tokens(vocabulary, special=(CONTROL, UNKNOWN)),
        "normalizer": {"type": "Sequence", "normalizers": [*_normalizers(vocabulary), *marks]},
        "pre_tokenizer": None,
        "post_processor": around(before, after, vocabulary),
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Pairs of tokens whose union is one, the best first."""
    scores = vocabulary.scores
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    parts = {token: i for i, (token, kind) in enumerate(pairs) if kind in (NORMAL, UNUSED)}
    found = [
        (-scores[i], i, [token[:cut], token[cut:]])
        for token, i in parts.items()
        for cut in range(1, len(token))
        if token[:cut] in parts and token[cut:] in parts
    ]
    return [pair for _, _, pair in sorted(found)]


def word_piece_tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """BERT's: the longest token first. In the file, what begins a word has the mark of a space, what goes on has none.

    Text is lowered if the file says so, or, where it says nothing, if no token has a capital letter.
    """
    metadata = vocabulary.metadata
    tokens = [_word_piece(token) for token in vocabulary.tokens]
    require(
        len(set(tokens)) == len(tokens),
        f"{metadata.path}: two tokens of its WordPiece vocabulary are the same; download it again",
    )
    kept = Vocabulary(metadata, vocabulary.model, tokens, vocabulary.kinds, vocabulary.roles)
    whole = [token for token in tokens if not (token.startswith("[") and token.endswith("]"))]
    lowered = metadata.flag("tokenizer.ggml.normalizer.lowercase", not any(token != token.lower() for token in whole))
    roles = {
        "cls_token": kept.role("cls_token") or kept.role("bos_token"),
        "sep_token": kept.role("sep_token") or kept.role("eos_token"),
    }
    flag = metadata.flag
    begun = roles["cls_token"] if flag("tokenizer.ggml.add_bos_token", True) else None
    ended = roles["sep_token"] if flag("tokenizer.ggml.add_sep_token", True) else None
    flag("tokenizer.ggml.add_eos_token", False)
    return {
        "version": "1.0",
        "added_tokens": added_tokens(kept),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": flag("tokenizer.ggml.normalizer.strip_accents", None),
            "lowercase": lowered,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": around(begun, ended, kept),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": kept.role("unk_token") or "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: i for i, token in enumerate(tokens)},
        },
    }


def _word_piece(token: str) -> str:
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[1:] if token.startswith(_SPACE) else f"##{token}"


def _normalizers(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """What SentencePiece does to a text before spaces are marked."""
    metadata = vocabulary.metadata
    table = metadata.numbers("tokenizer.ggml.precompiled_charsmap")
    found: list[dict[str, Any]] = []
    if table is not None and len(table):
        raw = table.astype("u1").tobytes()
        found.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(raw).decode()})
    if metadata.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        found.append({"type": "Strip", "strip_left": True, "strip_right": True})
        found.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return found


def _unknown(vocabulary: Vocabulary) -> str | None:
    kinds = vocabulary.kinds
    return vocabulary.tokens[kinds.index(UNKNOWN)] if UNKNOWN in kinds else vocabulary.role("unk_token")


def _ends(vocabulary: Vocabulary, begun: bool, ended: bool) -> tuple[str | None, str | None]:
    """Tokens before and after a text, where the file does not say otherwise."""
    flag = vocabulary.metadata.flag
    before = vocabulary.role("bos_token") if flag("tokenizer.ggml.add_bos_token", begun) else None
    return before, vocabulary.role("eos_token") if flag("tokenizer.ggml.add_eos_token", ended) else None
