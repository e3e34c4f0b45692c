"""What decoding keeps of far tokens that came as codes: the codes, rows of a table that stand for them, or their keys
and values.
"""

from __future__ import annotations

import numpy as np

from astra_mpi.caches.cache import Part
from astra_mpi.caches.codes import CodeSpace, CountedKeys, ScoredCodes, TurnedCodes
from astra_mpi.caches.kept import Kept
from astra_mpi.caches.packed import Seen, SeenCodes, SeenCounts
from astra_mpi.caches.rows import rows_of
from astra_mpi.codec.codec import Codec
from astra_mpi.device.xp import beside, take
from astra_mpi.errors import AstraError
from astra_mpi.strategies.coded.arrived import Arrived
from astra_mpi.strategies.coded.carried import Carried
from astra_mpi.strategies.coded.remote import RemoteTables
from astra_mpi.strategies.coded.states import States
from astra_mpi.strategies.far_keys import FarKeys
from astra_mpi.strategies.token_parallel import TokenParallel


class FarCodes(TokenParallel):
    """Token parallelism with codes. What is sent, and how it becomes keys and values, is for `Astra` to say."""

    codec: Codec
    first_coded: int  # the first block with an exchange
    carried: Carried | None  # far keys of blocks without codes of their own, where others' say them
    remote: RemoteTables
    #: codes of what predictions miss: only keys and values are kept, for codes alone do not say what a token is
    states: States | None
    packed: bool  # attention takes all sequences in one launch
    plain: bool  # a score is key times query and no more
    arrived: Arrived

    _spaces: dict[int, CodeSpace]
    _far_turns: dict[tuple[int, bytes], np.ndarray]  # of far tokens that are kept

    def _far(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where the far tokens of block i lie in the sent ones, where each sequence's begin among them, and where they
        lie in the gathered ones."""
        reach = self.reaches[i]
        if self.exchange.missing.treatment == "drop" and self.arrived.missing[i].any():
            return reach.far_from(reach.far_ranks[~self.arrived.missing[i, reach.far_ranks]])
        return reach.far_index, reach.far_offsets, reach.tokens

    def remember(self, i: int, far: FarKeys, part: Part, offsets: np.ndarray) -> Kept | Seen:
        """Some far tokens' keys and values, their codes (`keeps_codes`), or the rows of a table that stand for both."""
        table = self.remote.tables[i]
        if not self._has_codes(i) or self._keeps_keys(i):
            return super().remember(i, far, part, offsets)
        index, _, tokens = self._far(i)
        codes, turns = take(self.arrived.codes[i], index[part]), self._turns_of(i, tokens[part])
        if table.rows is not None and self.plain:
            if not self.packed:
                return CountedKeys(table.rows, codes, self.kernels)
            size = self.codec.blocks[i].size
            return SeenCounts(beside(codes, table.rows), *self.kernels.distinct(codes, beside(codes, offsets), size))
        if self.packed:
            return SeenCodes(table, codes, turns, offsets, self.kernels, self.dtype)
        return self._codes_kept(i, codes, turns)

    def _keeps_keys(self, i: int) -> bool:
        """Whether keys and values of far tokens are kept, not their codes: unless a row of a table is both, or codes
        are asked for. Not even then if a new token would have to project every far token again: keys are turned and not
        quantised themselves, or vectors are no sums."""
        table = self.remote.tables[i]
        if self.states is not None:
            return True
        if self.plain and table.rows is not None:
            return False
        again = not self.plain and self.site != "kv" and self.remote.how == "gemm"
        no_sums = self.plain and not self.packed and not self.codec.blocks[i].additive
        return again or no_sums or not (self.keeps_codes or self.packed)

    def _codes_kept(self, i: int, codes: np.ndarray, turns: np.ndarray | None) -> Kept:
        """Codes (m, C) that are not rows of the table alone; turns (m, d)."""
        table = self.remote.tables[i]
        if not self.plain:
            return TurnedCodes(table, codes, turns)
        if i not in self._spaces:
            self._spaces[i] = CodeSpace(self.blocks[i], self.codec.blocks[i], self.codec.config.site, table)
        return ScoredCodes(self._spaces[i], codes, self.kernels)

    @property
    def continues(self) -> bool:  # type: ignore[override]
        return not self.first_coded and not self.codec.config.near

    def as_seen(self, i: int, payload: np.ndarray) -> np.ndarray:
        return self.codec.blocks[i].encode(payload, self.kernels)

    def seen_bytes(self, i: int, n_tokens: int) -> int:
        return self.codec.blocks[i].message_bytes(n_tokens)

    def pack_seen(self, i: int, seen: np.ndarray) -> np.ndarray:
        return self.codec.blocks[i].pack(seen, self.kernels)

    def unpack_seen(self, i: int, message: np.ndarray, n_tokens: int) -> np.ndarray:
        codec = self.codec.blocks[i]
        codes = codec.unpack(message, n_tokens, self.kernels)
        bad = codec.misfit(codes)
        if bad is not None and bool(bad.any()):
            raise AstraError(f"a code is not below codebook size {codec.size}: corrupt message")
        return codes

    def kept_of(self, i: int, seen: np.ndarray, turns: np.ndarray | None) -> Kept:
        table = self.remote.tables[i]
        if self.plain and table.rows is not None:
            return CountedKeys(table.rows, seen, self.kernels)
        if self._keeps_keys(i):
            kv = table.far_kv(seen, self.kernels)
            if turns is not None:
                self.kernels.rotate(kv, turns, self.config.n_kv_heads)
            return rows_of(self.config, kv, None, self.kernels)
        return self._codes_kept(i, seen, turns)

    def _turns_of(self, i: int, index: np.ndarray) -> np.ndarray | None:
        """Of the gathered tokens index (m,), (m, d): one array for all blocks that turn alike; None: nothing turns."""
        turns = self.gathered.turns(i)
        if turns is None:
            return None
        key = id(turns), index.tobytes()
        if key not in self._far_turns:
            self._far_turns[key] = take(turns, index)
        return self._far_turns[key]

    def kept_offsets(self, i: int, far: FarKeys) -> np.ndarray:
        return far.offsets if not self._has_codes(i) or self.states is not None else self._far(i)[1]

    def kept_index(self, i: int, far: FarKeys) -> np.ndarray:
        return self._far(i)[2] if self._has_codes(i) else super().kept_index(i, far)

    def _has_codes(self, i: int) -> bool:
        """Whether what decoding keeps of block i follows from its own codes."""
        return i >= self.first_coded and (self.carried is None or self.codec.blocks[i].bits_per_token > 0)
