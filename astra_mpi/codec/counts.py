"""Stages in one word: a number, or one per block, such as 0,3x8,2x12."""

from __future__ import annotations

import itertools
import re

from astra_mpi.codec.config import Counts
from astra_mpi.config import require

#: a number of stages; of N blocks alike, the same or one of keys and one of values
_NUMBER, _BLOCKS = re.compile(r"[0-9]{1,6}"), re.compile(r"(?:([0-9]{1,6})x)?([0-9]{1,6}(?:\+[0-9]{1,6})?)")
MAX_BLOCKS = 4096


def stages_of(text: str) -> Counts:
    """What --stages says: a number M, or one per block, N blocks alike as NxM, stages of keys and of values as K+V.

    InputError on anything else.
    """
    if _NUMBER.fullmatch(text):
        return int(text)
    counts: list[int | tuple[int, ...]] = []
    for word in text.split(","):
        found = _BLOCKS.fullmatch(word)
        require(found is not None, f"--stages {text}: {word!r} is not M, NxM or K+V, such as 8 or 0,3x8,2x12")
        assert found is not None
        parts = tuple(int(part) for part in found[2].split("+"))
        n = int(found[1] or 1)
        require(1 <= n <= MAX_BLOCKS, f"--stages {text}: {n} blocks; give 1 to {MAX_BLOCKS}")
        counts += [parts[0] if len(parts) == 1 else parts] * n
    return tuple(counts)


def as_text(counts: Counts) -> str:
    """As `stages_of` reads them."""
    if isinstance(counts, int):
        return str(counts)
    words = []
    for one, alike in itertools.groupby(counts):
        n, word = len(list(alike)), "+".join(map(str, one)) if isinstance(one, tuple) else str(one)
        words.append(f"{n}x{word}" if n > 1 or len(counts) == 1 else word)
    return ",".join(words)
