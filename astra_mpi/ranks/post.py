"""Letters between ranks that nobody waits for: a JSON head and arrays, sent and received while the ranks compute.

No thread makes progress: a rank looks at its post (`letters`) between two pieces of work, and that is enough for MPI to
go on with what it sends and receives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI

_TAG = 21


class Letter(NamedTuple):
    """What another rank, or this one, has sent."""

    source: int
    head: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Post:
    """This rank's post office on a duplicate of a communicator. Collective to make and to `close`."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = MPI.Intracomm(comm).Dup()
        self._sent: list[tuple[MPI.Request, np.ndarray]] = []
        self._coming: list[tuple[MPI.Request, int, np.ndarray]] = []  # in order of arrival

    def send(self, target: int, head: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
        """Begin to send. Arrays of strings (dtype object) travel in the head."""
        message = _packed(head, arrays or {})
        self._sent.append((self.comm.Isend(message, target, _TAG), message))

    def letters(self) -> Iterator[Letter]:
        """What has come, of each sender in order."""
        self._sent = [(request, message) for request, message in self._sent if not request.Test()]
        status = MPI.Status()
        while (message := self.comm.Improbe(MPI.ANY_SOURCE, _TAG, status)) is not None:
            buffer = np.empty(status.Get_count(MPI.BYTE), np.uint8)
            self._coming.append((message.Irecv(buffer), status.source, buffer))
        waiting, here, held = [], [], set()
        for request, source, buffer in self._coming:
            if source in held or not request.Test():
                held.add(source)
                waiting.append((request, source, buffer))
            else:
                here.append((source, buffer))
        self._coming = waiting
        for source, buffer in here:
            yield Letter(source, *_unpacked(buffer))

    def flush(self) -> None:
        """Wait until what was sent has left; its receivers look at their post meanwhile."""
        MPI.Request.Waitall([request for request, _ in self._sent])
        self._sent = []

    def close(self) -> None:
        self.comm.Free()


def _packed(head: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """-> uint8: the length of the text, the text, the numbers of the arrays."""
    texts = {name: array.tolist() for name, array in arrays.items() if array.dtype == object}
    numbers = {name: np.ascontiguousarray(array) for name, array in arrays.items() if name not in texts}
    shapes = [(name, array.dtype.str, array.shape) for name, array in numbers.items()]
    text = json.dumps([head, texts, shapes]).encode()
    parts = [np.array([len(text)], np.int64).view(np.uint8), np.frombuffer(text, np.uint8)]
    return np.concatenate([*parts, *(array.reshape(-1).view(np.uint8) for array in numbers.values())])


def _unpacked(message: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    n = int(message[:8].view(np.int64)[0])
    head, texts, shapes = json.loads(message[8 : 8 + n].tobytes())
    sizes = [np.dtype(kind).itemsize * int(np.prod(shape)) for _, kind, shape in shapes]
    bounds = np.cumsum([8 + n, *sizes])
    arrays = {
        name: np.frombuffer(message[a:b].tobytes(), kind).reshape(shape)
        for (name, kind, shape), a, b in zip(shapes, bounds[:-1], bounds[1:], strict=True)
    }
    return head, arrays | {name: np.array(values, object) for name, values in texts.items()}
