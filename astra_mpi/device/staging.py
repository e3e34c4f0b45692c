"""How messages get between device memory and MPI: by way of page-locked host memory, or directly.

Work that is queued on the device goes on meanwhile: copies run on a stream of their own, ordered by events, and the
host waits for nothing but the message that it is about to send.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

TRANSPORTS = ("host", "cuda-aware")


class Staging:
    """Host-staged: MPI sees page-locked host memory. One message is under way at a time."""

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self.transfer = xp.cuda.Stream(non_blocking=True)
        self.made, self.fetched, self.arrived = (xp.cuda.Event(disable_timing=True) for _ in range(3))
        self._message: Any = None
        self._received: dict[int, Any] = {}  # per turn of the exchanges that may be under way, uint8
        self._sums = self.message_buffer(0)

    def message_buffer(self, n: int, dtype: type = np.uint8) -> Any:
        """(n,) page-locked."""
        memory = self.xp.cuda.alloc_pinned_memory(max(n, 1) * np.dtype(dtype).itemsize)
        return np.frombuffer(memory, dtype, n)

    def take(self, message: Any, part: np.ndarray) -> None:
        """Begin to copy the message to `part` of a message buffer, once it has been computed."""
        self._message = message  # until it has been copied
        if isinstance(message, np.ndarray):  # what a rank sends that has failed
            part[:] = message
            return
        self.made.record()
        self.transfer.wait_event(self.made)
        if message.size:
            message.get(stream=self.transfer, out=part, blocking=False)
        self.fetched.record(self.transfer)

    def taken(self) -> None:
        """Wait until the message may be sent."""
        if not isinstance(self._message, np.ndarray):
            self.fetched.synchronize()
        self._message = None

    def give(self, parts: Sequence[np.ndarray], turn: int = 0) -> list[Any]:
        """What came, on the device; work queued from now on sees it. Valid until the next message of this turn, of the
        exchanges that may be under way at once, is taken.

        The copies come after `made` of this exchange on their stream, so whatever read the last one's of its turn is
        done.
        """
        ends = [0, *accumulate(part.size for part in parts)]
        if turn not in self._received or self._received[turn].size < ends[-1]:
            with (
                self.transfer
            ):  # from memory of that stream's own: no work of the other one that is queued still uses it
                self._received[turn] = self.xp.empty(ends[-1], np.uint8)
        here = [self._received[turn][a:b] for a, b in pairwise(ends)]
        for target, part in zip(here, parts, strict=True):
            if part.size:
                target.set(part, stream=self.transfer)
        self.arrived.record(self.transfer)
        self.xp.cuda.get_current_stream().wait_event(self.arrived)
        return here

    def reduced(self, share: Any, reduce: Callable[[np.ndarray], np.ndarray]) -> Any:
        """What `reduce` makes of `share` (..) float32 on the host, on the device."""
        if self._sums.size < share.nbytes:
            self._sums = self.message_buffer(share.nbytes)
        host = self._sums[: share.nbytes].view(np.float32).reshape(share.shape)
        if prod(share.shape):
            share.get(out=host)
        return self.xp.asarray(reduce(host))

    def settle(self) -> None:
        """Wait until all that is queued has been computed."""
        self.xp.cuda.get_current_stream().synchronize()


class CudaAware(Staging):
    """MPI sees device memory. It knows of no streams: what it is to send has been computed before it is called."""

    def message_buffer(self, n: int, dtype: type = np.uint8) -> Any:
        return self.xp.empty(n, dtype)

    def take(self, message: Any, part: Any) -> None:
        """Into the buffer that MPI sends; by then nobody reads what it received last, which `made` waits for too."""
        if isinstance(message, np.ndarray):
            part.set(message)
        else:
            part[:] = message
        self.made.record()

    def taken(self) -> None:
        self.made.synchronize()

    def give(self, parts: Sequence[Any], turn: int = 0) -> list[Any]:
        return list(parts)

    def reduced(self, share: Any, reduce: Callable[[Any], Any]) -> Any:
        self.settle()
        return reduce(share)


def make_staging(xp: Any, transport: str) -> Staging:
    """transport: one of TRANSPORTS."""
    return CudaAware(xp) if transport == "cuda-aware" else Staging(xp)
