"""`tokenizer.ggml.*`: tokens, what kind each is, and which have a role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.convert.gguf.metadata import Metadata

#: `tokenizer.ggml.token_type`
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
#: roles of tokens in tokenizer_config.json -> their keys behind tokenizer.ggml.
_ROLES = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # so spelled in the format
    "pad_token": "padding_token_id",
    "cls_token": "cls_token_id",
    "mask_token": "mask_token_id",
}
#: control tokens that end an answer whatever the metadata say, as llama.cpp has it
_ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>"),
    *("<|end_of_text|>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<｜end▁of▁sentence｜>"),
    "<end_of_utterance>",
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id."""

    metadata: Metadata
    model: str  # "gpt2", "llama", "bert" or "t5"
    tokens: list[str]
    kinds: list[int]
    roles: dict[str, int]  # name in tokenizer_config.json -> id

    def role(self, name: str) -> str | None:
        """The token of a role, as text."""
        return self.tokens[self.roles[name]] if name in self.roles else None

    @property
    def scores(self) -> list[float]:
        """InputError where there is not one per token."""
        found = self.metadata.numbers("tokenizer.ggml.scores")
        n = 0 if found is None else len(found)
        require(
            n == len(self.tokens),
            f"{self.metadata.path}: tokenizer.ggml.scores has {n} entries, but there are {len(self.tokens)} tokens;"
            " download it again",
        )
        return [] if found is None else [float(score) for score in found]

    def ends(self) -> list[int]:
        """Ids that end a generated text."""
        keys = ("eos_token_id", "eot_token_id", "eom_token_id")
        if self.model == "bert":
            return []
        found = [self.metadata.integer(f"tokenizer.ggml.{key}", None) for key in keys]
        by_name = [i for i, token in enumerate(self.tokens) if self.kinds[i] == CONTROL and token in _ENDS]
        return list(dict.fromkeys([i for i in found if i is not None] + by_name))


def read_vocabulary(metadata: Metadata) -> Vocabulary | None:
    """None where the file has no tokenizer. InputError on what contradicts itself."""
    model = metadata.text("tokenizer.ggml.model", "none")
    tokens = metadata.texts("tokenizer.ggml.tokens")
    if model in ("none", "no_vocab"):
        return None
    path = metadata.path
    require(bool(tokens), f"{path} has no tokenizer.ggml.tokens; download it again")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    seen: dict[str, int] = {}
    for i, token in enumerate(tokens):
        first = seen.setdefault(token, i)
        require(first == i, f"{path}: the tokens {first} and {i} are both {token!r}; download it again")
    roles = {}
    for name, key in _ROLES.items():
        i = metadata.integer(f"tokenizer.ggml.{key}", None)
        known = i is None or i < len(tokens)
        require(known, f"{path}: tokenizer.ggml.{key} = {i}, but there are {len(tokens)} tokens; download it again")
        if i is not None:
            roles[name] = i
    return Vocabulary(metadata, model, tokens, _kinds(metadata, len(tokens)), roles)


def _kinds(metadata: Metadata, n_tokens: int) -> list[int]:
    found: np.ndarray | None = metadata.numbers("tokenizer.ggml.token_type")
    if found is None:
        return [NORMAL] * n_tokens
    wrong = f"{metadata.path}: tokenizer.ggml.token_type has {len(found)} entries, but there are {n_tokens} tokens"
    require(len(found) == n_tokens, f"{wrong}; download it again")
    return [int(kind) for kind in found]


def added_tokens(vocabulary: Vocabulary, special: tuple[int, ...] = (CONTROL,)) -> list[dict[str, Any]]:
    """`added_tokens` of tokenizer.json: those that texts give whole, not in pieces."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    return [
        {"id": i, "content": token, **flags, "special": kind in special}
        for i, (token, kind) in enumerate(pairs)
        if kind in special or kind == USER_DEFINED
    ]


def around(before: str | None, after: str | None, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """`post_processor` of tokenizer.json that puts tokens around a text; None where there are none."""
    ends = [token for token in (before, after) if token is not None]
    if not ends:
        return None
    ids = {token: {"id": token, "ids": [vocabulary.tokens.index(token)], "tokens": [token]} for token in ends}

    def marked(token: str | None, kind: int) -> list[dict[str, Any]]:
        return [] if token is None else [{"SpecialToken": {"id": token, "type_id": kind}}]

    single = [*marked(before, 0), {"Sequence": {"id": "A", "type_id": 0}}, *marked(after, 0)]
    begin = [] if vocabulary.model == "bert" else marked(before, 1)
    pair = [*single, *begin, {"Sequence": {"id": "B", "type_id": 1}}, *marked(after, 1)]
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": ids}
