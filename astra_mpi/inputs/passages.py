"""A text cut into passages of a bounded number of tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator

from astra_mpi.config import require
from astra_mpi.inputs.text import Tokenizer

Span = tuple[int, int]  # start and end of a piece of a text

#: where a text may be cut: between paragraphs, else between sentences, else between words
_BOUNDARIES = (
    re.compile(r"\n\s*\n"),
    re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*"),
    re.compile(r"\s+"),
)


def passages(text: str, tokenizer: Tokenizer, max_tokens: int) -> list[str]:
    """Cut a text into passages of at most `max_tokens` tokens, prompt and special tokens included.

    Whole paragraphs are packed greedily. A paragraph that is too long is cut between sentences, a sentence between
    words, a word between characters. Only white space between passages is dropped.
    """
    tokenizer.check_room(max_tokens)
    pieces = list(_pieces(text, (0, len(text)), 0, tokenizer, max_tokens))
    packed = [list(group) for group in _pack(pieces, max_tokens - tokenizer.n_fixed)]
    return [text[start:end].strip() for group in packed for start, end in _fitting(text, group, tokenizer, max_tokens)]


def _pieces(text: str, span: Span, level: int, tokenizer: Tokenizer, max_tokens: int) -> Iterator[tuple[Span, int]]:
    """Spans that fit, as large as the boundaries allow, with their tokens (prompt and special ones not counted)."""
    spans = _split(text, span, level)
    for piece, count in zip(spans, tokenizer.count([text[a:b] for a, b in spans]), strict=True):
        if count <= max_tokens:
            yield piece, count - tokenizer.n_fixed
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
