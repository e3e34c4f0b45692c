"""What far ranks see of a slice, in the serial oracle: entries of codebooks, rounded numbers, or means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from astra_mpi.codec.config import KINDS

Array = NDArray[Any]


class Far:
    """One way to see far tokens. Called with block i and the tokens (T, width) at `site`, it says what is seen."""

    def __init__(self, owner: Array, site: str) -> None:
        self.site = site  # "hidden", "normed", or "kv": called with keys and values
        self.token_owner, self.n_tokens = owner, len(owner)
        self.owner = owner  # (m,) the rank that holds each row seen
        self.bias = np.zeros(len(owner))  # (m,) added to the scores of its key
        self.flips = 0
        self.sites: list[Array] = []  # per block that is coded or rounded: (T, width), the rows before
        self.gaps: list[Array] = []  # beside these (T,): by how much what is given errs more than the oracle's own
        self.causal, self.heard = False, np.ones(len(owner), bool)
        self.judged = self.heard
        self.in_order = False
        self.n_sinks = 0  # first tokens that nobody sees through this

    def leave_out(self, n_sinks: int) -> None:
        """Nobody sends the first tokens, nor is judged for them: all see them as they are."""
        self.n_sinks, self.heard = n_sinks, self.heard & (np.arange(self.n_tokens) >= n_sinks)
        self.judged = self.heard

    def look_back(self, size: int) -> None:
        """From now on, rows see what lower ranks hold only. What the last of `size` ranks would send nobody judges."""
        self.causal, self.heard = True, self.heard & (self.token_owner < size - 1)
        self.judged = self.heard

    def judge_seen(self, seen: Array) -> None:
        """In the next block, what tokens (T,) are seen through by nobody else is not judged either: it is not sent."""
        self.judged = self.heard & seen

    def look_at_earlier(self, told: Array) -> None:
        """From now on, tokens see those before them, whichever ranks hold them; told (T,): what others were sent."""
        self.in_order, self.heard = True, np.asarray(told, bool)
        self.judged = self.heard

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        """Each part (T, width) of block i as other ranks see it, (m, width)."""
        raise NotImplementedError

    def judge(self, rows: Array) -> Array:
        """The gaps (T,), to be filled, of what is given for the rows (T, width)."""
        self.sites.append(rows)
        self.gaps.append(np.zeros(len(rows)))
        return self.gaps[-1]

    @property
    def worst_gap(self) -> float:
        return float(np.concatenate([*self.gaps, np.zeros(1)]).max())

    def visible(self, i: int, rank: Array) -> Array:
        """(rows, m): what rows on the ranks `rank` (rows,) see in block i, which is what is not their own."""
        if self.in_order:
            earlier = np.arange(len(rank))[:, None] > np.arange(len(self.owner))[None, :] % self.n_tokens
            return earlier & (rank[:, None] != self.owner[None, :])
        if self.causal:
            return self.owner[None, :] < rank[:, None]
        return rank[:, None] != self.owner[None, :]


class Means(Far):
    """A slice as the means of runs of `ratio` tokens, the last run shorter; a mean of n tokens counts n times."""

    def __init__(self, owner: Array, ratio: int) -> None:
        super().__init__(owner, "hidden")
        slices = [np.flatnonzero(owner == rank) for rank in np.unique(owner)]
        self.runs = [tokens[a : a + ratio] for tokens in slices for a in range(0, len(tokens), ratio)]
        self.owner = np.array([owner[run[0]] for run in self.runs], np.int64)
        self.bias = np.log([len(run) for run in self.runs])

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        return [np.reshape([part[run].mean(axis=0) for run in self.runs], (-1, part.shape[1])) for part in parts]


class Rounded(Far):
    """Rows rounded to float16, or to multiples of 1/127 of their largest magnitude: the oracle's own, or given ones.

    The gap of a given number is the excess of its error over the best one's, relative to the row's largest magnitude.
    """

    def __init__(self, owner: Array, wire: str, gather: str, given: Sequence[ArrayLike] | None) -> None:
        super().__init__(owner, "hidden" if gather == "x" else "kv")
        self.wire, self.given = wire, given

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        rows = np.concatenate(parts, axis=1)
        gaps = self.judge(rows)
        largest = np.abs(rows).max(axis=1, keepdims=True, initial=0)  # (T, 1)
        if self.wire == "float16":
            step = np.spacing(np.abs(rows).astype(np.float16)).astype(np.float64)
            used = rows.astype(np.float16).astype(np.float64)
        else:
            step = np.where(largest > 0, largest, 1) / 127
            used = np.rint(rows / step) * step
        if self.given is not None:
            own, used = used, np.asarray(self.given[i], np.float64)
            used = np.where(self.judged[:, None], used, own)
            self.flips += int((np.abs(used - own) > step / 2).sum())
            excess = np.abs(used - rows) - np.abs(own - rows)
            gaps[:] = (excess / np.where(largest > 0, largest, 1)).max(axis=1, initial=0)
        return np.split(used, np.cumsum([part.shape[1] for part in parts])[:-1], axis=1)


class Quantised(Far):
    """Codebooks: entries in place of rows, with the oracle's codes or with given ones, and the score of those.

    missing: per block (P, P), what the rank of a row did not get of the rank of a column. stand_in: per block the codes
    (C,) that it sees in place of each missing token, or None: it sees nothing there. first: the first block with codes.
    """

    def __init__(
        self,
        owner: Array,
        codec: Any,
        given: Sequence[ArrayLike] | None,
        missing: Sequence[Array] | None = None,
        stand_in: Sequence[Array] | None = None,
        first: int = 0,
    ) -> None:
        super().__init__(owner, codec.config.site)
        self.first = first
        self.owner = owner if stand_in is None else np.tile(owner, 2)
        self.bias = np.zeros(len(self.owner))
        self.codec, self.given, self.missing, self.stand_in = codec, given, missing, stand_in
        self.codes: list[Array] = []

    def visible(self, i: int, rank: Array) -> Array:
        """Tokens as they are, then as their stand-in."""
        away = super().visible(i, rank)
        if self.missing is None:
            return away
        gone = np.asarray(self.missing[i])[rank[:, None], self.owner[None, :]]
        stands_in = np.arange(len(self.owner)) >= self.n_tokens
        return away & (gone == stands_in)

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        """One codebook per part, the codes side by side."""
        if i < self.first:  # as it is; nothing is missing
            return [np.resize(part, (len(self.owner), part.shape[1])) for part in parts]
        books, seen = self.codec.blocks[i].codebooks, self.approximated(i, parts)
        if self.stand_in is not None:
            stand_ins = np.split(self.stand_in[i], np.cumsum([book.n_codes for book in books])[:-1])
            pairs = zip(seen, books, stand_ins, strict=True)
            seen = [np.concatenate([rows, np.tile(_entry(book, codes), (len(rows), 1))]) for rows, book, codes in pairs]
        return seen

    def approximated(self, i: int, parts: Sequence[Array], whole: Array | None = None) -> list[Array]:
        """What the codes of each part (T, width) stand for. whole (T, width): vectors that parts are left of."""
        books = self.codec.blocks[i].codebooks
        n_codes = [len(book.entries) + (len(book.head.entries) if book.head else 0) for book in books]
        used = np.empty((len(parts[0]), sum(n_codes)), np.int64)  # (T, C)
        if self.given is not None:
            used[:] = self.given[i - self.first]
        seen, gaps = [], self.judge(np.concatenate([*parts, *([] if whole is None else [whole])], axis=1))
        for book, part, codes in zip(books, parts, np.split(used, np.cumsum(n_codes)[:-1], axis=1), strict=True):
            of_part = np.square(part if whole is None else whole).sum(axis=1)
            rows, first = np.zeros(part.shape), 0
            if book.head is not None:
                first = len(book.head.entries)
                rows = self._rows(book.head, part, codes[:, :first], of_part, gaps)
            seen.append(rows + self._rows(book, part - rows, codes[:, first:], of_part, gaps))
        self.codes.append(used)
        return seen

    def _rows(self, book: Any, part: Array, codes: Array, squares: Array, gaps: Array) -> Array:
        """What a codebook's codes but those of its head, (T, C), stand for, of the vectors (T, width).

        squares (T,): of what these are left of; gaps (T,) become at least these codes' own.
        """
        basis = None if book.basis is None else book.basis.astype(np.float64)
        entries = book.entries.astype(np.float64)
        searched = entries if basis is None else entries @ basis  # (C, K, W or d)
        near, given = self._near_ends(), self.judged if self.given is not None else np.zeros(len(part), bool)
        rows = []
        for t, row in enumerate(_forward(book, part)):
            n_sought = None if book.ordinary is None or near[t] else book.ordinary
            found = self._row(book.kind, entries, searched, basis, row, codes[t], given[t], squares[t], n_sought)
            rows.append(found[0])
            gaps[t] = max(gaps[t], found[1])
        return np.reshape(_back(book, np.array(rows)), part.shape) if rows else part

    def _near_ends(self) -> Array:
        """(T,) which tokens are among the last ones of their slice that have more codes; in encoders also the first."""
        owner, n = self.token_owner, self.codec.config.near
        near = np.zeros(len(owner), bool)
        for rank in set(owner.tolist()):
            places = np.flatnonzero(owner == rank)
            near[places[max(0, len(places) - n) :]] = True
            if not self.causal:
                near[places[:n]] = True
        return near

    def _row(
        self,
        kind: str,
        entries: Array,
        searched: Array,
        basis: Array | None,
        row: Array,
        codes: Array,
        given: bool,
        square: float,
        n_sought: int | None,
    ) -> tuple[Array, float]:
        """Quantise one row (D,) with entries (C, K, W); fills `codes` (C,), or checks given ones.

        Returns the approximation (D,), and the gap.

        With a basis (W, d), distances are those of the projections, `searched` (C, K, d) of the entries.
        The gap of a given code is (its distance - the best distance) / (its distance + square), between 0 and 1, where
        square is ||row||^2, or that of the vector which the row is left of: float32 errs in proportion to that norm. A
        later code is judged on what it stands for (`rule.target`), given the codes used before it.
        """
        rule, (n_codes, _, width) = KINDS[kind], entries.shape
        chosen: list[Array] = []
        target, gap = None, 0.0
        for c in range(n_codes):
            if n_sought is not None and c >= n_sought:  # an ordinary token has no such code: the last entry is 0
                if not given:
                    codes[c] = len(entries[c]) - 1
                elif codes[c] != len(entries[c]) - 1:
                    gap = 1.0
                chosen.append(entries[c, codes[c]][None])
                continue
            target = rule.target(c, row[None], target, chosen[-1] if chosen else None, width)  # (1, W)
            sought = target[0] if basis is None else target[0] @ basis
            distances = ((searched[c] - sought) ** 2).sum(axis=1)  # (K,)
            best = int(distances.argmin())
            if not given:
                codes[c] = best
            elif codes[c] != best:
                excess = distances[codes[c]] - distances[best]
                self.flips += 1
                if excess > 0:
                    gap = max(gap, float(excess / (distances[codes[c]] + square)))
            chosen.append(entries[c, codes[c]][None])
        return rule.combine(np.stack(chosen), len(row))[0], gap


def _entry(book: Any, codes: Array) -> Array:
    """What the codes (C,) stand for, (D,)."""
    if book.head is not None:
        first = len(book.head.entries)
        return _entry(book.head, codes[:first]) + _entry(replace(book, head=None), codes[first:])
    entries = [book.entries[c, code].astype(np.float64)[None] for c, code in enumerate(codes)]
    return _back(book, KINDS[book.kind].combine(np.stack(entries), book.width))[0]


def _forward(book: Any, x: Array) -> Array:
    """What is quantised of the vectors x (n, D)."""
    if book.transform is None:
        return x
    forward, _, offset = (array.astype(np.float64) for array in book.transform)
    return (x - offset) @ forward


def _back(book: Any, z: Array) -> Array:
    """The vectors (n, D) that go with what was quantised; what ranks round here (kernels/integers.py) is less than what
    is accepted of float32."""
    if book.transform is None:
        return z
    _, back, offset = (array.astype(np.float64) for array in book.transform)
    return z @ back + offset
