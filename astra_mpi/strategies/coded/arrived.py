"""The codes of all ranks' tokens in a pass, as they have arrived block by block."""

from __future__ import annotations

from copy import copy
from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.received import unpacked
from astra_mpi.device.xp import to_host
from astra_mpi.errors import AstraError
from astra_mpi.partition import displs
from astra_mpi.strategies.coded.graded import Graded


class Arrived:
    """What this rank has been told; what it has not been told is zeros, and what did not come is the mean's."""

    def __init__(self, codec: Codec, size: int, xp: Any, kernels: ModuleType) -> None:
        self.codec, self.size, self.xp, self.kernels = codec, size, xp, kernels
        self.means = [self._mean(i) for i in range(len(codec.blocks))]  # (1, C) each
        self._forget()

    def _forget(self) -> None:
        n_layers = len(self.codec.blocks)
        #: per block, of the sent tokens (n, C)
        self.codes: list[np.ndarray] = [np.empty((0, 0), np.uint8)] * n_layers
        self.missing = np.zeros((n_layers, self.size), dtype=bool)  # (L, P): did not come from P
        self.begin()

    def begin(self) -> None:
        """Before a pass."""
        self.unchecked: list[tuple[int, np.ndarray, np.ndarray]] = []

    def twin(self) -> Arrived:
        """For another pass at the same time."""
        twin = copy(self)
        twin._forget()
        return twin

    def take(
        self,
        i: int,
        messages: list[np.ndarray],
        missing: np.ndarray,
        counts: np.ndarray,
        heard: set[int],
        graded: Graded,
    ) -> None:
        """Messages (P) of block i, of counts (P,) tokens each, become codes (sum n_r, C), rank after rank.

        missing (P,): theirs did not come. heard: ranks whose messages are here. AstraError on a code of no entry.
        """
        codec, self.missing[i] = self.codec.blocks[i], missing
        codes = unpacked(codec, messages, counts, heard, self.missing[i], self.means[i], graded.mask, self.kernels)
        bad = codec.misfit(codes) if codes.size else None
        if bad is not None:  # else every code is one of an entry
            if self.xp is np:
                self._check(i, bad, counts)
            else:  # looked at after the last block, so that no block waits for the device
                self.unchecked.append((i, bad, counts))
                codes = codec.clipped(codes)
        self.codes[i] = codes

    def take_none(self, i: int, n_tokens: int) -> None:
        """Nothing is sent in block i, and nothing is missed."""
        self.missing[i] = False
        self.codes[i] = self.xp.zeros((n_tokens, self.codec.blocks[i].n_codes), self.means[i].dtype)

    def came(self, i: int, counts: np.ndarray, index: np.ndarray) -> np.ndarray | None:
        """(m,) float32: 0 where the codes of the tokens `index` (m,) of block i are missing; None: nothing is.

        counts (P,): tokens of each rank's message.
        """
        if not self.missing[i].any():
            return None
        came = np.repeat(~self.missing[i], counts)[index]
        return self.xp.asarray(came.astype(np.float32))

    def end(self) -> None:
        """After the last block: look at what could not be looked at before."""
        for i, bad, counts in self.unchecked:
            self._check(i, to_host(bad), counts)

    def _check(self, i: int, bad: np.ndarray, counts: np.ndarray) -> None:
        """Raise AstraError where a token of block i is bad (sum n_r,), of ranks with n_r tokens each."""
        if bad.any():
            size, ends = self.codec.blocks[i].size, displs(counts)
            rank = int(np.searchsorted(ends, bad.argmax(), "right")) - 1
            raise AstraError(f"a code from rank {rank} is not below codebook size {size}: corrupt message")

    def _mean(self, i: int) -> np.ndarray:
        books = self.codec.blocks[i].codebooks
        mean = self.xp.asarray(np.concatenate([book.mean for book in books])[None])
        return self.codec.blocks[i].encode(mean, self.kernels)
