"""A communicator whose waits a watchdog sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any

from mpi4py import MPI

from astra_mpi.ranks.watchdog import Watchdog

#: blocking calls that this package makes
_CALLS = [
    "Allgather",
    "Allgatherv",
    "Allreduce",
    "Alltoall",
    "Alltoallv",
    "Barrier",
    "Bcast",
    "Gather",
    "Gatherv",
    "Recv",
    "Reduce",
    "Scatter",
    "Scatterv",
    "Send",
    "Sendrecv",
]
#: the attribute of a communicator that holds its watchdog
_KEY = MPI.Comm.Create_keyval(delete_fn=lambda comm, key, dog: dog.close())


class Watched(MPI.Intracomm):
    """The same communicator; blocking calls are noted on `dog` while they last."""

    dog: Watchdog | None
    #: of ranks of a part of the job: their numbers in all of it, for messages
    numbers: Sequence[int] | None = None

    def __new__(cls, comm: MPI.Comm | None = None, dog: Watchdog | None = None) -> Watched:
        self = super().__new__(cls, comm)
        self.dog = dog
        return self


def _noted(name: str) -> Callable[..., Any]:
    method = getattr(MPI.Intracomm, name)

    @wraps(method)
    def call(self: Watched, *args: Any, **options: Any) -> Any:
        if self.dog is None:
            return method(self, *args, **options)
        with self.dog.waiting(name):
            return method(self, *args, **options)

    return call


for _name in _CALLS:
    setattr(Watched, _name, _noted(_name))


def watched(comm: MPI.Comm, limit_s: float | None = None) -> MPI.Comm:
    """Collective: `comm` with a watchdog, made once and kept with it; `comm` itself where it is of one rank.

    limit_s: how long a rank waits for the others, 0 for ever; None leaves it as it is.
    """
    dog = getattr(comm, "dog", None)
    if comm.Get_size() == 1 and dog is None:
        return comm
    dog = dog or comm.Get_attr(_KEY)
    if not isinstance(dog, Watchdog):
        dog = Watchdog(comm)
        comm.Set_attr(_KEY, dog)
    if limit_s is not None:
        dog.limit_s = limit_s
    return Watched(comm, dog)


def also_watched(comm: MPI.Comm, like: MPI.Comm, numbers: Sequence[int] | None = None) -> MPI.Comm:
    """`comm`, a duplicate or (with `numbers`) a part of `like`, under the watchdog of that one, if it has one."""
    dog = getattr(like, "dog", None)
    if dog is None:
        return comm
    made = Watched(comm, dog)
    made.numbers = getattr(like, "numbers", None) if numbers is None else numbers
    return made


def waiting(comm: MPI.Comm, what: str) -> AbstractContextManager[None]:
    """A context in which this rank waits for others of `comm` in another way than by a blocking call."""
    dog = getattr(comm, "dog", None)
    return dog.waiting(what) if dog is not None else nullcontext()


def alone(comm: MPI.Comm, what: str) -> AbstractContextManager[None]:
    """A context in which others of `comm` wait for this rank, and may have to for long."""
    dog = getattr(comm, "dog", None)
    return dog.alone(what) if dog is not None else nullcontext()
