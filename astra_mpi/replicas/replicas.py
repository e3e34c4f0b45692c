"""A model on every replica of a grid, called as one."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from astra_mpi.config import require
from astra_mpi.errors import InputError, collective, same_on_all
from astra_mpi.partition import displs, even
from astra_mpi.ranks.broadcast import broadcast_text, gather_texts
from astra_mpi.ranks.grid import Groups
from astra_mpi.replicas.report import of_all
from astra_mpi.stages.around import Around

if TYPE_CHECKING:
    from astra_mpi.engine import Model

_DTYPES = ("float32", "float64", "int32", "int64")
Call = Callable[[np.ndarray, Any, slice], Any]


class Replicas(Around):
    """The model of this rank's replica, and calls that share the sequences of a batch out among all replicas.

    What is not said here is that of the model. A call is collective over all ranks, with the same inputs on each.
    """

    def __init__(self, model: Model, groups: Groups) -> None:
        self.model, self.groups, self.comm = model, groups, groups.world
        self.report: dict[str, Any] = {}

    def use(self, strategy: str, *, counted_keys: bool = True, remote: str = "auto") -> None:
        """Collective, as `Model.use`. What it chooses by timing is chosen once, by the first replica."""
        if self.groups.place[0] == 0:
            self.model.use(strategy, counted_keys=counted_keys, remote=remote)
            remote = str(self.model.strategy.describe()["choices"].get("remote", remote))
        remote = broadcast_text(self.comm, remote)
        if self.groups.place[0] > 0:
            self.model.use(strategy, counted_keys=counted_keys, remote=remote)

    def share(self, n_sequences: int) -> slice:
        """The sequences of a batch that this rank's replica computes."""
        first = displs(even(n_sequences, self.groups.grid.replicas))
        replica = self.groups.place[0]
        return slice(int(first[replica]), int(first[replica + 1]))

    def __call__(
        self, inputs: np.ndarray, mask: np.ndarray | None = None, gather: bool = False, spread: bool = False
    ) -> Any:
        """As `Model.__call__`."""

        def run(inputs: np.ndarray, mask: Any, _: slice) -> Any:
            answer = self.model(inputs, mask, gather=gather, spread=spread)
            return answer if gather else (answer, None)

        answer, hidden = self._shared(run, inputs, mask) or (None, None)
        every = self._joined(answer)
        return (every, self._gathered(hidden)) if gather else every

    def nll(self, ids: np.ndarray, mask: np.ndarray | None, n_context: np.ndarray) -> np.ndarray:
        """As `Model.nll`."""
        return self._joined(self._shared(lambda i, m, own: self.model.nll(i, m, n_context[own]), ids, mask))

    def generate(self, ids: np.ndarray, mask: np.ndarray | None = None, **request: Any) -> np.ndarray:
        """As `Model.generate`, but that tokens are not handed out as they come (`on_tokens`)."""
        require(
            request.get("on_tokens") is None,
            "replicas end at different times and hand out no tokens before the end; give a grid with one replica",
        )
        sample = request.pop("sample", None)

        def run(ids: np.ndarray, mask: Any, own: slice) -> np.ndarray:
            if sample is not None:  # which knows sequences by their place in the whole batch
                request["sample"] = lambda logits, sequences, step: sample(logits, sequences + own.start, step)
            return self.model.generate(ids, mask, **request)

        return self._joined(self._shared(run, ids, mask))

    def _shared(self, call: Call, inputs: np.ndarray, mask: np.ndarray | None) -> Any:
        """Collective: `call` on this replica's sequences; None where it has none."""
        inputs = np.asarray(inputs)
        self._check_same(inputs, mask)
        own = self.share(len(inputs))
        answer, report = None, ""
        with collective(self.comm):
            if own.stop > own.start:
                answer = call(inputs[own], None if mask is None else np.asarray(mask)[own], own)
                report = json.dumps(self.model.report)
        reports = [json.loads(text) if text else None for text in gather_texts(self.groups.across, report)]
        self.report = of_all(reports, self.groups.grid, self.held())
        return answer

    def held(self) -> dict[str, Any]:
        """Collective: what every rank has at all times, for reports."""
        mine = np.array([self.model.weight_bytes, self.model.clock.speed], np.float64)
        every = np.empty((self.comm.Get_size(), 2))
        self.comm.Allgather(mine, every)
        return {"weight_bytes": every[:, 0].astype(int).tolist(), "speed": every[:, 1].tolist()}

    def _check_same(self, inputs: np.ndarray, mask: np.ndarray | None) -> None:
        mine = zlib.crc32(repr((inputs.shape, inputs.dtype, mask is None)).encode())
        for array in (inputs, mask):
            mine = mine if array is None else zlib.crc32(np.ascontiguousarray(array).tobytes(), mine)
        every = np.empty(self.comm.Get_size(), np.int64)
        self.comm.Allgather(np.array([mine], np.int64), every)
        if (every != every[0]).any():
            raise same_on_all(InputError("the inputs differ between ranks; give every rank the same batch"))

    def _joined(self, own: np.ndarray | None) -> np.ndarray:
        """Collective: rows (n, ..) of the replicas, one after another; None: no rows of this one."""
        across = self.groups.across
        own, counts = self._alike(own)
        every = np.empty((int(counts.sum()), *own.shape[1:]), own.dtype)
        n_bytes = own.dtype.itemsize * int(np.prod(own.shape[1:]))
        across.Allgatherv(own.view(np.uint8), [every.view(np.uint8), counts * n_bytes])
        return every

    def _gathered(self, hidden: np.ndarray | None) -> np.ndarray | None:
        """Hidden states (B, rows, width) of all replicas on rank 0, zeros beyond the rows that a replica has."""
        if self.model.comm.Get_rank() != 0:
            return None
        across = self.groups.across
        rows = np.array([0 if hidden is None else hidden.shape[1]])
        across.Allreduce(MPI.IN_PLACE, rows, op=MPI.MAX)
        if hidden is not None:
            hidden = np.pad(hidden, ((0, 0), (0, int(rows[0]) - hidden.shape[1]), (0, 0)))
        every = self._joined(hidden)
        return every if across.Get_rank() == 0 else None

    def _alike(self, own: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Collective: the rows of this replica, none where it has none, and how many each has."""
        across = self.groups.across
        told = np.zeros(4, np.int64)  # dtype, axes, widths
        if own is not None:
            told[0], told[1], told[2 : 1 + own.ndim] = _DTYPES.index(str(own.dtype)), own.ndim, own.shape[1:]
        counts = np.empty(across.Get_size(), np.int64)
        across.Allgather(np.array([0 if own is None else len(own)], np.int64), counts)
        across.Allreduce(MPI.IN_PLACE, told, op=MPI.MAX)
        if own is None:
            own = np.zeros((0, *told[2 : 1 + told[1]]), _DTYPES[told[0]])
        return np.ascontiguousarray(own), counts
