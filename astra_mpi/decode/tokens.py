"""The tokens that were sampled, as the ranks tell each other of them: all that decoding alone sends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from astra_mpi.decode.request import Request
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.pending import Pending

#: the first byte of a message: what a rank that failed, and drains its exchanges, does not send
_WELL = 1
#: the same, of a rank that wants no more tokens
_ENOUGH = 2


class Tokens:
    """Ids (B, n) of all steps, -1 where a sequence has none; a rank fills in those that it samples.

    Ranks tell each other after every pass, or once in the end. When told after every pass, its ids are waited for after
    the next one has been computed, unless they are needed at once.
    """

    def __init__(
        self,
        exchange: Exchange,
        sampler: np.ndarray,
        room: np.ndarray,
        request: Request,
        *,
        often: bool,
        soon: bool,
    ) -> None:
        """sampler (B,): the rank that samples a sequence; room (B,): ids it may get. often: after every pass; soon:
        wait for them at once."""
        self.exchange, self.sampler, self.room = exchange, sampler, room
        self.stop, self.ends = np.array(request.stop, np.int64), request.ends
        self.enough = request.enough or (lambda: False)
        self.alone, self.often, self.soon = exchange.size == 1, often, soon
        self.ids = np.full((len(sampler), int(room.max(initial=0))), -1, np.int32)
        self.counts = np.zeros(len(sampler), np.int64)  # ids of each sequence, as far as this rank knows
        self.ended = np.zeros(len(sampler), bool)  # the same
        #: (B, drafts) what is to be checked of each sequence in the next pass, -1 for nothing
        self.drafts = np.full((len(sampler), request.most_drafts), -1, np.int32)
        self.failed = False  # some rank has
        self._told = np.zeros_like(self.counts)  # ids that all ranks know of
        self._told_all = False  # all ranks know that all sequences have ended
        self._n_known = 0  # steps that `known` was called with
        #: called with step and ids (B,) when all ids of a step are known here
        self.known: Callable[[int, np.ndarray], None] = lambda step, ids: None
        self._pending: tuple[int, Pending] | None = None  # ids of a sequence in what is on its way

    @property
    def over(self) -> bool:
        """Whether this rank has nothing more to do but to close."""
        if self.often and not self.alone:
            return self.failed or self._told_all
        return self.failed or bool(self.ended[self.sampler == self.exchange.rank].all())

    def put(self, sequences: np.ndarray, ids: np.ndarray) -> None:
        """The next ids (n,) of `sequences` (n,), which have not ended."""
        self.ids[sequences, self.counts[sequences]] = ids
        self.counts[sequences] += 1
        for s in sequences:
            self.ended[s] = self._ends(s, int(self.counts[s]))

    def _ends(self, s: int, n: int) -> bool:
        """Whether a sequence ends with its n-th id."""
        if not n:
            return False
        last = self.ids[s, n - 1] in self.stop or n >= self.room[s]
        return bool(last or (self.ends is not None and self.ends(self.ids[s, :n])))

    def tell(self) -> None:
        """This rank's ids of a pass are in place."""
        if self.alone:
            self._told = self.counts.copy()
            self._tell_known(self.ended)
            if self.enough():
                self.ended[:] = True
        elif self.often:
            self.hear()
            if not self.over:
                self._start(self._width)
            if self.soon:
                self.hear()

    def _tell_known(self, ended: np.ndarray) -> None:
        """Steps of which all ids are known now; ended (B,), by these."""
        n_known = int(self._told[~ended].min() if not ended.all() else self._told.max(initial=0))
        for step in range(self._n_known, n_known):
            self.known(step, np.where(step < self._told, self.ids[:, step], -1))
        self._n_known = max(self._n_known, n_known)

    def hear(self) -> None:
        """Wait for what is on its way."""
        if self._pending is None:
            return
        (width, pending), self._pending = self._pending, None
        enough = False
        for rank, message in enumerate(pending.wait()):
            self.failed |= bool(message[0] not in (_WELL, _ENOUGH))
            enough |= bool(message[0] == _ENOUGH)
            if not self.failed:
                self._take(np.flatnonzero(self.sampler == rank), message[1:].view(np.int32), width)
        if self.often and not self.failed:
            ended = np.array([self._ends(s, int(n)) for s, n in enumerate(self._told)], bool)
            self._told_all = enough or bool(ended.all())
            if enough:  # what follows is of a pass that this rank alone knows of
                self.ids[np.arange(self.ids.shape[1]) >= self._told[:, None]] = -1
                ended[:] = True
            self._tell_known(ended)

    def _take(self, sequences: np.ndarray, message: np.ndarray, width: int) -> None:
        """Of a rank's message: the next ids of its sequences, and what is to be checked then."""
        for s, words in zip(sequences, message.reshape(len(sequences), width + self._n_drafts), strict=True):
            new = words[:width][words[:width] >= 0]
            first, self._told[s] = self._told[s], self._told[s] + len(new)
            self.ids[s, first : self._told[s]] = new
            if self.soon:
                self.drafts[s] = words[width:]
            if self._told[s] > self.counts[s]:
                self.counts[s] = self._told[s]
                self.ended[s] = self._ends(s, int(self.counts[s]))

    def close(self) -> None:
        """After the last pass."""
        if not self.alone and not self.often:
            self._start(self.ids.shape[1])
        self.hear()

    def abandon(self) -> None:
        """After a failure on this rank, before it told what it had to tell next: the others learn of it."""
        if self.alone:
            return
        self.hear()
        if not self.over:
            counts = self._sizes(self._width if self.often else self.ids.shape[1])
            self.exchange.drain(counts, self.exchange.n_started + 1, on_host=True)

    @property
    def _width(self) -> int:
        """Ids that a sequence gets in one pass at most."""
        return 1 + self.drafts.shape[1]

    @property
    def _n_drafts(self) -> int:
        """Of a sequence that ranks tell each other of."""
        return self.drafts.shape[1] * self.soon

    def _sizes(self, width: int) -> list[int]:
        """Bytes of each rank's message."""
        n_sampled = np.bincount(self.sampler, minlength=self.exchange.size)
        return [1 + 4 * (width + self._n_drafts) * int(n) for n in n_sampled]

    def _start(self, width: int) -> None:
        mine = np.flatnonzero(self.sampler == self.exchange.rank)
        words = np.full((len(mine), width), -1, np.int32)
        for row, s in zip(words, mine, strict=True):
            new = self.ids[s, self._told[s] : self.counts[s]]
            row[: len(new)] = new
        if self.soon:
            words = np.concatenate([words, self.drafts[mine]], axis=1)
        word = _ENOUGH if self.often and self.enough() else _WELL
        message = np.concatenate([np.full(1, word, np.uint8), words.reshape(-1).view(np.uint8)])
        self._pending = width, self.exchange.start(message, self._sizes(width), on_host=True)
        self.exchange.as_class_bytes(len(message))
