"""What decoding keeps in device memory: all sequences of a block side by side, attended to together."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from astra_mpi.caches.cache import Cache, Part
from astra_mpi.caches.new import NewTokens
from astra_mpi.codec.tables import FarTable
from astra_mpi.partition import displs, ranges

if TYPE_CHECKING:
    from astra_mpi.device.backend import Backend

#: far tokens whose keys and values exist at a time, where they are rebuilt for every new token
TILE = 16384


class Keys(NamedTuple):
    """What `attend_new` is to go over."""

    kv: Any  # (m, 2 d_kv)
    starts: Any  # (n,) of the sequences that get a token
    ends: Any  # (n,)
    longest: int
    bias: Any | None = None
    rows: Any | None = None


class Chosen:
    """The sequences of the new tokens, by their places among those that are kept.

    Blocks ask for the same numbers of them: those are uploaded once per pass.
    """

    def __init__(self, xp: Any, places: np.ndarray) -> None:
        self.xp, self.places = xp, places
        self.there = xp.asarray(places)
        self._uploaded: dict[bytes, Any] = {}

    def upload(self, numbers: np.ndarray) -> Any:
        """A number of every new token, int64, on the device."""
        key = numbers.tobytes()
        if key not in self._uploaded:
            self._uploaded[key] = self.xp.asarray(numbers)
        return self._uploaded[key]

    def of(self, numbers: np.ndarray) -> Any:
        """A number of every kept sequence, int64 -> those of the new tokens, on the device."""
        return self.upload(numbers[self.places])

    def keys(self, kv: Any, starts: np.ndarray, ends: np.ndarray, bias: Any | None = None) -> Keys:
        """Keys of the new tokens' sequences, from starts to ends of each token."""
        longest = int((ends - starts).max(initial=0))
        return Keys(kv, self.upload(starts), self.upload(ends), longest, bias)


class Seen(Protocol):
    """Far keys and values of all kept sequences in one block."""

    def keys(self, chosen: Chosen, first: np.ndarray | int = 0) -> Iterator[Keys]:
        """One after another, what a new token attends to; first: key of its sequence, of each new token, or of all."""

    def arrays(self) -> Iterable[Any]:
        """All that is kept."""


class SeenRows:
    """Keys and values as they are."""

    def __init__(self, kv: Any, bias: Any | None, offsets: np.ndarray) -> None:
        """kv (m, 2 d_kv), bias (m,) added to the scores; a sequence's at `offsets`."""
        self.kv, self.bias, self.offsets = kv, bias, offsets

    def keys(self, chosen: Chosen, first: np.ndarray | int = 0) -> Iterator[Keys]:
        yield chosen.keys(self.kv, self.offsets[chosen.places] + first, self.offsets[chosen.places + 1], self.bias)

    def arrays(self) -> Iterable[Any]:
        return [self.kv] if self.bias is None else [self.kv, self.bias]


class SeenCounts:
    """The distinct codes of each sequence with the logarithms of their counts, read from the table's rows."""

    def __init__(self, rows: Any, values: Any, log_counts: Any, ends: Any) -> None:
        """rows (K, 2 d_kv); values and log_counts (n K,), those of sequence s from s K up to ends[s] (n,)."""
        self.rows, self.values, self.log_counts, self.ends = rows, values, log_counts, ends
        self.starts = len(rows) * np.arange(len(ends))

    def keys(self, chosen: Chosen, first: np.ndarray | int = 0) -> Iterator[Keys]:
        starts, ends = chosen.of(self.starts), self.ends[chosen.there]
        yield Keys(self.rows, starts, ends, len(self.rows), self.log_counts, self.values)

    def arrays(self) -> Iterable[Any]:
        return [self.values, self.log_counts, self.ends]


class SeenCodes:
    """Codes (m, C) whose keys and values are rebuilt for every new token, the keys turned by their positions."""

    def __init__(
        self, table: FarTable, codes: Any, turns: Any | None, offsets: np.ndarray, kernels: ModuleType, dtype: type
    ) -> None:
        """turns (m, d): as the kernel `rotate` takes them; None: keys carry no positions. dtype: of keys and values."""
        self.table, self.codes, self.turns, self.offsets = table, codes, turns, offsets
        self.kernels, self.dtype = kernels, dtype

    def keys(self, chosen: Chosen, first: np.ndarray | int = 0) -> Iterator[Keys]:
        for a in range(0, len(self.codes), TILE):
            starts = np.clip(self.offsets[chosen.places] + first, a, a + TILE) - a
            ends = np.clip(self.offsets[chosen.places + 1], a, a + TILE) - a
            if (ends > starts).any():
                kv: Any = self.table.far_kv(self.codes[a : a + TILE], self.kernels).astype(self.dtype, copy=False)
                if self.turns is not None:
                    self.kernels.rotate(kv, self.turns[a : a + TILE], kv.shape[1] // 2 // self.turns.shape[1])
                yield chosen.keys(kv, starts, ends)

    def arrays(self) -> Iterable[Any]:
        return [self.codes] if self.turns is None else [self.codes, self.turns]


class PackedCache(Cache):
    """In device memory, sequence after sequence, with room for each one's new tokens."""

    def __init__(self, backend: Backend, *kept: Any) -> None:
        super().__init__(*kept)
        self.kernels, self.xp, self.dtype = backend.kernels, backend.xp, backend.dtype
        self.heads = self.config.n_heads, self.config.n_kv_heads
        self.own: list[Any] = [None] * self.config.n_layers  # (capacity, 2 d_kv)
        self.seen: list[Seen | None] = [None] * self.config.n_layers
        first, end = (rows[self.sequences] for rows in self.own_spans)
        held = end - first
        capacity = displs(held + self.room[self.sequences])
        self.capacity, self.starts, self.ends = int(capacity[-1]), capacity[:-1], capacity[:-1] + held
        self.kernels.warm_up_new(self.heads, self.config.d_head, self.dtype, self.config.score_cap)
        #: positions of own and far keys, of each kept sequence, for blocks with a window
        self._own_places: list[list[int]] = [[] for _ in self.sequences]
        self._far_places: dict[int, list[list[int]]] = {}
        self._prompt_rows = self.xp.asarray(ranges(first, held))
        self._prompt_places = self.xp.asarray(ranges(self.starts, held))

    def keep_own(self, i: int, kv: Any, places: np.ndarray | None) -> None:
        if places is not None:
            first, end = self.own_spans
            self._own_places = [places[first[s] : end[s]].tolist() for s in self.sequences]
        self.own[i] = self.xp.empty((self.capacity, kv.shape[1]), self.dtype)
        self.own[i][self._prompt_places] = kv[self._prompt_rows]

    def keep_far(
        self,
        i: int,
        offsets: np.ndarray,
        remember: Callable[[Part, np.ndarray], Seen],
        places: np.ndarray | None,
    ) -> None:
        if places is not None:
            self._far_places[i] = [places[offsets[s] : offsets[s + 1]].tolist() for s in self.sequences]
        first, last = offsets[self.sequences], offsets[self.sequences + 1]
        if self.keeps_far and (first < last).any():
            self.seen[i] = remember(ranges(first, last - first), displs(last - first))

    def plan(self, new: NewTokens) -> None:
        places = np.searchsorted(self.sequences, new.sequences)
        self._chosen, self._new = Chosen(self.xp, places), None
        np.add.at(self.ends, places[new.keeps], 1)
        self._seen_ends = self.ends[places] - new.behind
        if new.keeps.any():
            self._new = self.xp.asarray(np.flatnonzero(new.keeps)), self.xp.asarray((self._seen_ends - 1)[new.keeps])
            for place, position in zip(places[new.keeps], new.positions[new.keeps], strict=True):
                self._own_places[place].append(int(position))
        self._own = self._chosen.keys(None, self.starts[places], self._seen_ends)
        self._positions = new.positions.tolist()

    def drop(self, sequence: int, n: int) -> None:
        place = int(np.searchsorted(self.sequences, sequence))
        self.ends[place] -= n
        del self._own_places[place][len(self._own_places[place]) - n :]

    def attend(self, i: int, q: Any, kv: Any, rows: Any) -> None:
        if self._new is not None:
            which, where = self._new
            self.own[i][where] = kv[which]
        seen = self.seen[i]
        fresh, window, own = True, self.config.window(i), self._own
        if window:
            starts = self.starts[self._chosen.places] + self._first(self._own_places, window)
            own = self._chosen.keys(None, starts, self._seen_ends)
        first = self._first(self._far_places[i], window) if window and seen is not None else 0
        for keys in () if seen is None else seen.keys(self._chosen, first):
            self._attend(q, keys, rows, fresh)
            fresh = False
        self._attend(q, own._replace(kv=self.own[i]), rows, fresh)

    def _first(self, places: list[list[int]], window: int) -> np.ndarray:
        """(n,) of its sequence's keys the first one in the window of each new token."""
        pairs = zip(self._chosen.places, self._positions, strict=True)
        return np.array([bisect_right(places[place], position - window) for place, position in pairs], np.int64)

    def _attend(self, q: Any, keys: Keys, rows: Any, fresh: bool) -> None:
        spans, cap = (keys.starts, keys.ends), self.config.score_cap
        self.kernels.attend_new(q, keys.kv, self.heads, spans, keys.longest, keys.bias, keys.rows, rows, fresh, cap)

    def merge(self, parts: Sequence[Any], rows: Any) -> None:
        self.kernels.merge_new(self.xp.stack(parts), rows, self.config.n_heads)

    def finish(self, rows: Any, out: Any) -> None:
        self.kernels.finish_new(rows, out, self.config.n_heads)

    def arrays(self) -> Iterable[Any]:
        seen = [array for of_block in self.seen if of_block is not None for array in of_block.arrays()]
        return [array for array in self.own if array is not None] + seen
