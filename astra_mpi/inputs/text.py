"""Text as users have it: read strictly, turned into token ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

Named = Callable[[int], str]


def fast_tokenizer(json: str) -> Any:
    """The `tokenizers.Tokenizer` of these contents of a tokenizer.json. InputError."""
    try:
        from tokenizers import Tokenizer as FastTokenizer
    except ImportError as exc:
        raise InputError("text needs the tokenizers library; pip install 'astra-mpi[text]'") from exc
    with refusing("the tokenizer cannot be read ({}); convert a folder with a tokenizer.json"):
        return FastTokenizer.from_str(json)


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """What the `tokenizers` library raises as an InputError; "{}" in the message becomes its own words."""
    try:
        yield
    except InputError:
        raise
    except BaseException as exc:  # it raises nothing more precise, and a panic of its Rust code is no Exception
        if not isinstance(exc, Exception) and type(exc).__name__ != "PanicException":
            raise
        raise InputError(message.replace("{}", str(exc))) from exc


class Tokenizer:
    """A Hugging Face fast tokenizer, given as the contents of its tokenizer.json.

    open_ended: what it puts after a text, as </s> or [SEP], is left out, because the text is to be gone on with.
    prompt: is put before every text, and cut with it. vocab_size: of the model; ids beyond are errors. split_special:
    special tokens that a text spells are ordinary characters. around: special tokens are put around a text. n_types:
    types of tokens that the model tells apart; up to 1, the tokenizer's types are not asked for.
    InputError if the `tokenizers` library is missing or cannot read it.
    """

    def __init__(
        self,
        json: str,
        open_ended: bool = False,
        prompt: str = "",
        vocab_size: int | None = None,
        split_special: bool = False,
        around: bool = True,
        n_types: int = 0,
    ) -> None:
        self._fast = fast_tokenizer(json)
        self._side = (self._fast.truncation or {}).get("direction", "right")
        self._fast.no_padding()
        self._fast.no_truncation()
        self._fast.encode_special_tokens = split_special
        self.prompt, self._vocab_size, self._n_types = prompt, vocab_size, n_types
        self._around = around
        self._n_left_out = self._n_ending() if open_ended and around else 0
        # around every text, as [CLS] and [SEP]
        self.n_special: int = self._fast.num_special_tokens_to_add(False) - self._n_left_out if around else 0
        #: with the prompt's
        self.n_fixed: int = self.n_special + len(self._fast.encode(prompt, add_special_tokens=False).ids)

    def check_fits(self, vocab_size: int) -> None:
        """InputError if an ordinary text gives ids that a model of this vocabulary does not have."""
        beyond = self._ordinary_beyond(vocab_size)
        around = [i for i in self._fast.encode("").ids if i >= vocab_size]
        highest = max([*beyond, *around], default=0)
        require(
            highest < vocab_size,
            f"the tokenizer does not fit the model: it has ids up to {highest} ({self._fast.id_to_token(highest)!r}),"
            f" the vocabulary ends at {vocab_size - 1}; convert the model with its own tokenizer",
        )

    def beyond(self, vocab_size: int) -> list[str]:
        """Tokens that the model has no row for, and that only a text gives that spells them."""
        every = self._fast.get_vocab(with_added_tokens=True)
        return sorted((token for token, i in every.items() if i >= vocab_size), key=every.__getitem__)

    def _ordinary_beyond(self, vocab_size: int) -> list[int]:
        """Ids beyond the vocabulary that texts can give without spelling a token's name."""
        own = self._fast.get_vocab(with_added_tokens=False)
        beyond = {token: i for token, i in own.items() if i >= vocab_size}
        if not beyond:
            return []
        added = {token.content for token in self._fast.get_added_tokens_decoder().values()}
        within = _mergeable(json_of(self._fast)) if beyond.keys() - added else None
        return [i for token, i in beyond.items() if token not in added and (within is None or token in within)]

    def encode(self, texts: Sequence[str], max_tokens: int, name: Named = "text {}".format) -> list[np.ndarray]:
        """Token ids (T_i,) int32 per text, prompt and special tokens included, cut to at most `max_tokens`.

        InputError on a token that the model has no row for; it calls the text by its `name`.
        """
        return self._rows(self._cut(texts, max_tokens), name)

    def encode_typed(
        self, items: Sequence[str | tuple[str, str]], max_tokens: int, name: Named = "text {}".format
    ) -> list[np.ndarray]:
        """As `encode`, of texts and pairs of texts. Where a token is of another type than 0, rows are (T_i, 2): ids
        and types. Of a pair the longer text is cut first."""
        if any(isinstance(item, tuple) for item in items):
            n_around = self._fast.num_special_tokens_to_add(True)
            require(
                max_tokens > n_around + 1,
                f"max_tokens = {max_tokens} leaves no room beside {n_around} special tokens of a pair; raise it",
            )
        encodings = self._cut(items, max_tokens)
        rows = self._rows(encodings, name)
        if self._n_types < 2:
            return rows
        types = [np.array(e.type_ids[: len(row)], np.int32) for e, row in zip(encodings, rows, strict=True)]
        for i, row in enumerate(types):
            highest = int(row.max(initial=0))
            require(
                highest < self._n_types,
                f"{name(i)} has tokens of type {highest}, and the model knows {self._n_types} types; convert it with"
                " its own tokenizer",
            )
        if not any(row.any() for row in types):
            return rows
        return [np.stack([row, kind], axis=1) for row, kind in zip(rows, types, strict=True)]

    def _cut(self, items: Sequence[str | tuple[str, str]], max_tokens: int) -> list[Any]:
        """The library's encodings of items, of at most `max_tokens` tokens."""
        self.check_room(max_tokens)
        self._fast.enable_truncation(max_tokens + self._n_left_out, direction=self._side)
        try:
            return self._encodings(items)
        finally:
            self._fast.no_truncation()

    def _rows(self, encodings: Sequence[Any], name: Named) -> list[np.ndarray]:
        rows = [np.array(e.ids[: len(e.ids) - self._n_left_out], dtype=np.int32) for e in encodings]
        for i, row in enumerate(rows):
            self._check_ids(row, name, i)
        return rows

    def encode_plain(self, text: str, name: str) -> np.ndarray:
        """Token ids (T,) int32 of a text that spells its special tokens itself, with nothing around it or cut.

        InputError as `encode`.
        """
        with refusing(f"the model's tokenizer has no tokens for {name} ({{}}); write it in other words"):
            row = np.array(self._fast.encode(text, add_special_tokens=False).ids, np.int32)
        self._check_ids(row, lambda _: name, 0)
        return row

    def _check_ids(self, row: np.ndarray, name: Named, i: int) -> None:
        bad = row[row >= self._vocab_size] if self._vocab_size is not None else row[:0]
        if bad.size:
            token = self._fast.id_to_token(int(bad[0]))
            raise InputError(
                f"{name(i)} has the token {token!r} (id {bad[0]}), for which the model has no row: its vocabulary ends"
                f" at {(self._vocab_size or 0) - 1}; take it out of the text"
            )

    def _n_ending(self) -> int:
        """Special tokens that are put after every text."""
        marks = self._fast.encode("a").special_tokens_mask
        return next((i for i, mark in enumerate(reversed(marks)) if not mark), 0)

    def special_id(self, text: str) -> int | None:
        """The token that is called so and adds no text, as </s>."""
        named: int | None = self._fast.token_to_id(text)
        return named if named is not None and self._fast.decode([named]) == "" else None

    def decode(self, ids: np.ndarray) -> str:
        """Token ids (T,) -> text without special tokens."""
        return self._fast.decode(ids.tolist())

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, prompt and special tokens included, nothing cut."""
        return [len(encoding.ids) for encoding in self._encodings(texts)]

    def _encodings(self, items: Sequence[str | tuple[str, str]]) -> list[Any]:
        whole = [(self.prompt + i[0], i[1]) if isinstance(i, tuple) else self.prompt + i for i in items]
        with refusing("the model's tokenizer has no tokens for a text ({}); convert another one"):
            found: list[Any] = self._fast.encode_batch(whole, add_special_tokens=self._around)
        return found

    def check_room(self, max_tokens: int) -> None:
        """InputError unless a text of one token fits."""
        beside = f"{self.n_special} special tokens"
        if self.prompt:
            beside = f"{self.n_fixed} tokens of the prompt {self.prompt!r} and around every text"
        require(max_tokens > self.n_fixed, f"max_tokens = {max_tokens} leaves no room beside {beside}; raise it")


def _mergeable(fast: Mapping[str, Any]) -> set[str] | None:
    """Of byte pairs, the tokens that texts can give; None of other kinds, which may give all."""
    model = fast["model"]
    if model["type"] != "BPE" or model["ignore_merges"]:
        return None
    prefix = model["continuing_subword_prefix"] or ""
    made = {a + b.removeprefix(prefix) for a, b in model["merges"]} | {model["unk_token"]}
    return made | {token for token in model["vocab"] if len(token) <= 1 + len(prefix) or token.startswith("<0x")}


def json_of(fast: Any) -> dict[str, Any]:
    """A `tokenizers.Tokenizer` as the object of its tokenizer.json."""
    contents: dict[str, Any] = json.loads(fast.to_str())
    return contents


def prompt_of(preprocess: Mapping[str, Any] | None, wanted: str | bool | None) -> str:
    """What is put before texts. wanted: None, the model's default; a name of its prompts; or "" or False, nothing.

    InputError on a name that the model does not have.
    """
    known: Any = (preprocess or {}).get("prompts", {})
    good = isinstance(known, dict) and all(isinstance(prompt, str) for prompt in known.values())
    require(good, "the prompts of the model file are damaged; convert the model again")
    if wanted is None:
        wanted = (preprocess or {}).get("default_prompt")
    if not wanted:
        return ""
    if wanted not in known:
        names = f"one of {', '.join(known)}" if known else "none, for it has no prompts"
        raise InputError(f"prompt {wanted!r} is not one of this model's; give {names}, or false for no prompt")
    return str(known[wanted])


def tokenizer_of(
    json: str | None,
    vocab_size: int,
    open_ended: bool = False,
    preprocess: Mapping[str, Any] | None = None,
    prompt: str | bool | None = "",
    around: bool = True,
    type_vocab: int = 0,
) -> Tokenizer:
    """A model file's tokenizer, with a prompt as `prompt_of` takes it; around: see `Tokenizer`. type_vocab: how many
    types the model knows.

    InputError if there is none, or if it is not for a vocabulary of this size.
    """
    if json is None:
        raise InputError("the model file holds no tokenizer; convert a folder with tokenizer.json, or give token ids")
    split = bool((preprocess or {}).get("split_special_tokens"))
    n_types = type_vocab if (preprocess or {}).get("token_types") else 0
    tokenizer = Tokenizer(json, open_ended, prompt_of(preprocess, prompt), vocab_size, split, around, n_types)
    tokenizer.check_fits(vocab_size)
    return tokenizer
