"""Text as users have it: read strictly, cut into passages, turned into token ids."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

Span = tuple[int, int]  # start and end of a piece of a text

#: where a text may be cut: between paragraphs, else between sentences, else between words
_BOUNDARIES = (
    re.compile(r"\n\s*\n"),
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*"),
    re.compile(r"\s+"),
)


class Tokenizer:
    """A Hugging Face fast tokenizer, given as the contents of its tokenizer.json.

    open_ended: what it puts after a text, as </s> or [SEP], is left out, because the text is to be gone on with.
    InputError if the `tokenizers` library is missing or cannot read it.
    """

    def __init__(self, json: str, open_ended: bool = False) -> None:
        try:
            from tokenizers import Tokenizer as FastTokenizer
        except ImportError as exc:
            raise InputError("text needs the tokenizers library; pip install 'astra-mpi[text]'") from exc
        try:
            self._fast = FastTokenizer.from_str(json)
        except Exception as exc:  # the library raises nothing more precise
            raise InputError(f"the tokenizer cannot be read ({exc}); convert a folder with a tokenizer.json") from exc
        self._fast.no_padding()
        self._fast.no_truncation()
        self._n_left_out = self._n_ending() if open_ended else 0
        # around every text, as [CLS] and [SEP]
        self.n_special: int = self._fast.num_special_tokens_to_add(False) - self._n_left_out

    def check_fits(self, vocab_size: int) -> None:
        """InputError if it gives ids that a model of this vocabulary does not have."""
        highest = max(self._fast.get_vocab(with_added_tokens=True).values(), default=-1)
        require(
            highest < vocab_size,
            f"the tokenizer does not fit the model: it has ids up to {highest} ({self._fast.id_to_token(highest)!r}),"
            f" the vocabulary ends at {vocab_size - 1}; convert the model with its own tokenizer",
        )

    def encode(self, texts: Sequence[str], max_tokens: int) -> list[np.ndarray]:
        """Token ids (T_i,) int32 per text, special tokens included, cut to at most `max_tokens`."""
        self.check_room(max_tokens)
        self._fast.enable_truncation(max_tokens + self._n_left_out)
        try:
            encodings = self._fast.encode_batch(list(texts))
        finally:
            self._fast.no_truncation()
        return [np.array(e.ids[: len(e.ids) - self._n_left_out], dtype=np.int32) for e in encodings]

    def _n_ending(self) -> int:
        """Special tokens that are put after every text."""
        marks = self._fast.encode("a").special_tokens_mask
        return next((i for i, mark in enumerate(reversed(marks)) if not mark), 0)

    def ids_of(self, text: str) -> list[int]:
        """The tokens that, alone, add exactly this text to another one, or are called so, as </s> is."""
        named = self._fast.token_to_id(text)
        if named is not None and self._fast.decode([named]) == "":
            return [named]
        before = self._fast.encode("a", add_special_tokens=False).ids
        known = len(self._fast.decode(before))
        every = sorted(self._fast.get_vocab(with_added_tokens=True).values())
        joined = self._fast.decode_batch([[*before, i] for i in every])
        return [i for i, whole in zip(every, joined, strict=True) if whole[known:] == text]

    def decode(self, ids: np.ndarray) -> str:
        """Token ids (T,) -> text without special tokens."""
        return self._fast.decode(ids.tolist())

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens per text, special tokens included, nothing cut."""
        return [len(encoding.ids) for encoding in self._fast.encode_batch(list(texts))]

    def check_room(self, max_tokens: int) -> None:
        """InputError unless a text of one token fits."""
        require(
            max_tokens > self.n_special,
            f"max_tokens = {max_tokens} leaves no room beside {self.n_special} special tokens; raise it",
        )


def tokenizer_of(json: str | None, vocab_size: int, open_ended: bool = False) -> Tokenizer:
    """A model file's tokenizer. InputError if there is none, or if it is not for a vocabulary of this size."""
    if json is None:
        raise InputError("the model file holds no tokenizer; convert a folder with tokenizer.json, or give token ids")
    tokenizer = Tokenizer(json, open_ended)
    tokenizer.check_fits(vocab_size)
    return tokenizer


def passages(text: str, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Cut a text into passages of at most `max_tokens` tokens, special tokens included.

    Whole paragraphs are packed greedily. A paragraph that is too long is cut between sentences, a sentence between
    words, a word between characters. Only white space between passages is dropped.
    """
    tokenizer.check_room(max_tokens)
    pieces = list(_pieces(text, (0, len(text)), 0, tokenizer, max_tokens))
    packed = [list(group) for group in _pack(pieces, max_tokens - tokenizer.n_special)]
    return [text[start:end].strip() for group in packed for start, end in _fitting(text, group, tokenizer, max_tokens)]


def _pieces(text: str, span: Span, level: int, tokenizer: Tokenizer, max_tokens: int) -> Iterator[tuple[Span, int]]:
    """Spans that fit, as large as the boundaries allow, with their tokens (special ones not counted)."""
    spans = _split(text, span, level)
    for piece, count in zip(spans, tokenizer.count([text[a:b] for a, b in spans]), strict=True):
        if count <= max_tokens:
            yield piece, count - tokenizer.n_special
        else:
            require(piece[1] - piece[0] > 1, f"max_tokens = {max_tokens} is too small for one character; raise it")
            yield from _pieces(text, piece, level + 1, tokenizer, max_tokens)


def _split(text: str, span: Span, level: int) -> list[Span]:
    """The non-empty pieces of a span at the boundaries of a level; beyond the last level, its two halves."""
    start, end = span
    if level >= len(_BOUNDARIES):
        middle = (start + end) // 2
        return [(start, middle), (middle, end)]
    cuts = [match.span() for match in _BOUNDARIES[level].finditer(text, start, end)]
    starts, ends = [start, *(b for _, b in cuts)], [*(a for a, _ in cuts), end]
    return [(a, b) for a, b in zip(starts, ends, strict=True) if text[a:b].strip()]


def _pack(pieces: list[tuple[Span, int]], room: int) -> Iterator[list[Span]]:
    """Groups of consecutive pieces, each as long as `room` tokens allow."""
    group: list[Span] = []
    used = 0
    for piece, count in pieces:
        if group and used + count > room:
            yield group
            group, used = [], 0
        group.append(piece)
        used += count
    if group:
        yield group


def _fitting(text: str, group: list[Span], tokenizer: Tokenizer, max_tokens: int) -> Iterator[Span]:
    """The group as one span; halved where its tokens together are more than the sum of its pieces'."""
    span = group[0][0], group[-1][1]
    if len(group) == 1 or tokenizer.count([text[slice(*span)]])[0] <= max_tokens:
        yield span
    else:
        middle = len(group) // 2
        yield from _fitting(text, group[:middle], tokenizer, max_tokens)
        yield from _fitting(text, group[middle:], tokenizer, max_tokens)


def undecodable(text: str) -> str:
    """What keeps `text` from being Unicode: a byte of an argument or name, half a character of JSON; "" if nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        code = ord(text[exc.start])
        if 0xDC80 <= code <= 0xDCFF:  # how Python passes on what it cannot decode
            return f"byte 0x{code - 0xDC00:02X} behind {exc.start} characters is not UTF-8"
        return f"\\u{code:04x} behind {exc.start} characters is half of a character"
    return ""


def argument_text(argument: str) -> str:
    """An argument as text, UTF-8 whatever the locale. InputError, without a name for it, if it is not."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise InputError(f"{undecodable(argument)}; give it in UTF-8") from None


def read_text(path: str | Path) -> str:
    """The contents of a UTF-8 file, without a byte order mark. InputError names the file, and the byte if it is not."""
    try:
        raw = Path(path).read_bytes()
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); check the path") from exc
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{path} is not UTF-8 at byte {exc.start}; convert it, for example with iconv -f latin1 -t utf-8"
        ) from exc
