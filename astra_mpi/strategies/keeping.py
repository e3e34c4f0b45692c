"""What decoding keeps of far tokens that a pass has seen, and of those that it keeps as others see them."""

from __future__ import annotations

from functools import partial

import numpy as np

from astra_mpi.caches.cache import Cache, Part
from astra_mpi.caches.kept import Kept
from astra_mpi.caches.packed import Seen, SeenRows
from astra_mpi.caches.rows import rows_of
from astra_mpi.device.xp import on_host, take
from astra_mpi.strategies.base import Strategy
from astra_mpi.strategies.far_keys import FarKeys


class Keeping(Strategy):
    """A strategy whose passes decoding can go on from."""

    #: what keeps keys and values of the next forward pass, for decoding
    cache: Cache | None = None
    #: whether decoding keeps far tokens as codes, where they came as codes: less memory, more work per new token
    keeps_codes: bool = False
    #: whether codes alone say what far tokens are
    may_keep_codes: bool = True
    #: whether a conversation goes on from what its earlier turns have left
    continues: bool = True

    def keeps_now(self, i: int) -> bool:
        """Whether decoding keeps the far keys that block i attends to; False: others, later."""
        return True

    def keep_far(self, i: int, far: FarKeys) -> None:
        """Turned far keys of block i into the cache."""
        assert self.cache is not None
        places = self._kept_places(i, self.planned.packed_content)
        places = None if places is None else places[self.kept_index(i, far)]
        self.cache.keep_far(i, self.kept_offsets(i, far), partial(self.remember, i, far), places)

    def _kept_places(self, i: int, index: np.ndarray) -> np.ndarray | None:
        """Positions of packed tokens, where decoding asks for them in block i."""
        if not self.config.window(i):
            return None
        assert self.positions is not None and self.positions.places is not None
        return self.positions.places[index]

    def kept_index(self, i: int, far: FarKeys) -> np.ndarray:
        """Which of the gathered tokens `remember` counts, in blocks with a window."""
        return self.planned.far_index if far.tokens is None else far.tokens

    def kept_offsets(self, i: int, far: FarKeys) -> np.ndarray:
        """(B + 1,) where each sequence's far tokens begin, as `remember` counts them."""
        return far.offsets

    def remember(self, i: int, far: FarKeys, part: Part, offsets: np.ndarray) -> Kept | Seen:
        """Of block i's far keys those of `part`, as decoding is to keep them; a sequence's begin at `offsets` of it."""
        rows = part if far.rows is None else far.rows[part]
        kv, bias = take(far.kv, rows), None if far.bias is None else take(far.bias, part)
        if on_host(kv):
            return rows_of(self.config, kv, bias, self.kernels)
        return SeenRows(kv.astype(self.dtype, copy=False), bias, offsets)

    def as_seen(self, i: int, payload: np.ndarray) -> np.ndarray:
        """Tokens at `site` (n, width) of block i -> what other ranks see of them, (n, w) integers."""
        raise NotImplementedError(f"strategy {self.name} sends nothing")

    def seen_bytes(self, i: int, n_tokens: int) -> int:
        """Of a message with what others see of so many tokens in block i."""
        return 0

    def pack_seen(self, i: int, seen: np.ndarray) -> np.ndarray:
        """What others see of tokens (n, w) -> message, uint8."""
        return seen.reshape(-1).view(np.uint8)

    def unpack_seen(self, i: int, message: np.ndarray, n_tokens: int) -> np.ndarray:
        """The message again as what others see, (n, w)."""
        return message.reshape(n_tokens, -1)

    def kept_of(self, i: int, seen: np.ndarray, turns: np.ndarray | None) -> Kept:
        """What is seen of other ranks' tokens (n, w) in block i, as decoding keeps it; turns (n, d) of their keys."""
        raise NotImplementedError(f"strategy {self.name} sends nothing")
