"""The tokens that were sampled, as the ranks tell each other of them: all that decoding alone sends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from astra_mpi.decode.request import Request
from astra_mpi.wire.exchange import Exchange, Pending

#: the first byte of a message: what a rank that failed, and drains its exchanges, does not send
_WELL = 1
#: the same, of a rank that wants no more tokens
_ENOUGH = 2


class Tokens:
    """Ids (B, n) of all steps, -1 where a sequence has none; a rank fills in those that it samples.

    Ranks tell each other at every step, or once in the end. When told at every step, a step's ids are waited for
    after the next one has been computed, unless they are needed at once.
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
        """sampler (B,): the rank that samples a sequence; room (B,): ids it may get. often: at every step; soon: wait
        for them at once."""
        self.exchange, self.sampler, self.room = exchange, sampler, room
        self.stop, self.ends = np.array(request.stop, np.int64), request.ends
        self.enough = request.enough or (lambda: False)
        self.alone, self.often, self.soon = exchange.size == 1, often, soon
        self.ids = np.full((len(sampler), int(room.max(initial=0))), -1, np.int32)
        self.ended = np.zeros(len(sampler), bool)  # as far as this rank knows
        self.failed = False  # some rank has
        self._told_all = False  # all ranks know that all sequences have ended
        #: called with step and ids (B,) when all ids of a step are known here
        self.known: Callable[[int, np.ndarray], None] = lambda step, ids: None
        self._pending: tuple[int, int, Pending] | None = None  # first and last step of what is on its way

    @property
    def over(self) -> bool:
        """Whether this rank has nothing more to do but to close."""
        if self.often and not self.alone:
            return self.failed or self._told_all
        return self.failed or bool(self.ended[self.sampler == self.exchange.rank].all())

    def put(self, step: int, sequences: np.ndarray, ids: np.ndarray) -> None:
        """The ids (n,) of `sequences` (n,) at `step`."""
        self.ids[sequences, step] = ids
        self.ended[sequences] |= self._last(step)[sequences]

    def _last(self, step: int) -> np.ndarray:
        """(B,) whether the id of `step` is a sequence's last, or comes after it."""
        ids = self.ids[:, step]
        last = np.isin(ids, self.stop) | (ids < 0) | (step + 1 >= self.room)
        if self.ends is not None:
            for s in np.flatnonzero(~last):
                last[s] = self.ends(self.ids[s, : step + 1])
        return last

    def tell(self, step: int) -> None:
        """This rank's ids of `step` are in place."""
        if self.alone:
            self.known(step, self.ids[:, step])
            if self.enough():
                self.ended[:] = True
        elif self.often:
            self.hear()
            if not self.over:
                self._start(step, step + 1)
            if self.soon:
                self.hear()

    def hear(self) -> None:
        """Wait for what is on its way."""
        if self._pending is None:
            return
        (begin, end, pending), self._pending = self._pending, None
        enough = False
        for rank, message in enumerate(pending.wait()):
            self.failed |= bool(message[0] not in (_WELL, _ENOUGH))
            enough |= bool(message[0] == _ENOUGH)
            if not self.failed:
                self._take(begin, np.flatnonzero(self.sampler == rank), message[1:].view(np.int32), end - begin)
        if self.often and not self.failed:
            self._told_all = enough or bool(self._last(begin).all())
            if enough:
                self.ids[:, begin + 1 :] = -1  # of a step that this rank alone knows of
            self.known(begin, self.ids[:, begin])

    def _take(self, begin: int, sequences: np.ndarray, ids: np.ndarray, n_steps: int) -> None:
        for step, column in enumerate(ids.reshape(len(sequences), n_steps).T, begin):
            there = column >= 0
            self.put(step, sequences[there], column[there])

    def close(self) -> None:
        """After the last step."""
        if not self.alone and not self.often:
            self._start(0, self.ids.shape[1])
        self.hear()

    def abandon(self) -> None:
        """After a failure on this rank, before it told what it had to tell next: the others learn of it."""
        if self.alone:
            return
        self.hear()
        if not self.over:
            n_steps = 1 if self.often else self.ids.shape[1]
            self.exchange.drain(self._counts(n_steps), self.exchange.n_started + 1, on_host=True)

    def _counts(self, n_steps: int) -> list[int]:
        n_sampled = np.bincount(self.sampler, minlength=self.exchange.size)
        return [1 + 4 * n_steps * int(n) for n in n_sampled]

    def _start(self, begin: int, end: int) -> None:
        mine = np.ascontiguousarray(self.ids[self.sampler == self.exchange.rank, begin:end])
        word = _ENOUGH if self.often and self.enough() else _WELL
        message = np.concatenate([np.full(1, word, np.uint8), mine.reshape(-1).view(np.uint8)])
        self._pending = begin, end, self.exchange.start(message, self._counts(end - begin), on_host=True)
        self.exchange.as_class_bytes(len(message))
