"""Which exchange hides best behind the local work: ways to all-gather a block's codes, A B C D A B C D.

jobs/cluster/cluster.sh run 4 python jobs/cluster/overlap.py MODEL.h5 [--codebooks FILE] [--rounds 9] [--warmup 2]
The model's forward pass with strategy astra, with each way in turn. Prints medians in milliseconds: the slowest rank's
total, its wait inside MPI, and the part of the wait that the other ranks' lateness does not explain (the least wait
over the ranks). MPICH's progress thread is a setting of a whole run: MPIR_CVAR_ASYNC_PROGRESS=1 before the command.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps
from astra_mpi.wire.messages import Plan


class Collective(Plan):
    """One nonblocking collective in rounds, left alone until it is waited for."""

    def __init__(self, comm: MPI.Comm, counts: Sequence[int]) -> None:
        super().__init__(comm, counts)
        self.comm, self.counts, self.starts = comm, counts, np.cumsum([0, *counts[:-1]])
        self.request = MPI.REQUEST_NULL

    def start(self) -> None:
        self.request = self.comm.Iallgatherv(MPI.IN_PLACE, [self.received, self.counts, self.starts, MPI.BYTE])

    def wait(self) -> None:
        self.request.Wait()


class Tested(Collective):
    """The same, with a call of Test whenever a phase of the local work ends."""


class Blocking(Plan):
    """Nothing hidden: the exchange ends before the local work begins."""

    def start(self) -> None:
        super().start()
        super().wait()

    def wait(self) -> None:
        pass


WAYS: dict[str, type[Plan]] = {"messages": Plan, "collective": Collective, "tested": Tested, "blocking": Blocking}


class TestingLaps(Laps):
    """Marks that give MPI a turn."""

    under_way: Plan | None = None

    def mark(self, phase: str) -> None:
        super().mark(phase)
        if phase in ("project", "attention") and isinstance(self.under_way, Tested):
            self.under_way.request.Test()


class ChosenExchange(Exchange):
    """An exchange of a way that is chosen anew before each pass."""

    way = "messages"

    def _plan(self, counts: tuple[int, ...], forward: bool) -> Plan:
        plan = WAYS[self.way](self.comm, counts)
        assert isinstance(self.laps, TestingLaps)
        self.laps.under_way = plan
        return plan

    def choose(self, way: str) -> None:
        self.way = way
        for plan in self._plans.values():
            plan.free()
        self._plans = {}


def run(model: astra_mpi.Model, rounds: int, warmup: int) -> dict[str, np.ndarray]:
    """Per way (rounds, 3): seconds of the slowest rank, its wait inside MPI, the least wait over ranks."""
    inputs, mask = random_batch(model.config, 1)
    found = {way: np.empty((rounds, 3)) for way in WAYS}
    for i in range(warmup + rounds):
        for way in WAYS:
            model.exchange.choose(way)
            model.comm.Barrier()
            model(inputs, mask)
            seconds = model.laps.seconds
            mine, every = np.array([sum(seconds.values()), seconds["exchange"]]), np.empty((model.comm.size, 2))
            model.comm.Allgather(mine, every)
            if i >= warmup:
                found[way][i - warmup] = *every[every[:, 0].argmax()], every[:, 1].min()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model file")
    parser.add_argument("--codebooks", help="codebook file, instead of the codebooks in the model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--strategy", default="astra", choices=("astra", "sp"))
    args = parser.parse_args()
    comm = MPI.COMM_WORLD
    model = astra_mpi.load(args.model, comm=comm, strategy="astra", codebooks=args.codebooks, counted_keys=False)
    model.laps = TestingLaps()
    model.exchange = ChosenExchange(comm, model.laps)
    model.use(args.strategy, counted_keys=False)
    found = run(model, args.rounds, args.warmup)
    if comm.Get_rank() == 0:
        thread = os.environ.get("MPIR_CVAR_ASYNC_PROGRESS", "0")
        print(f"{comm.size} ranks, progress thread {thread}; ms, medians of {args.rounds}")
        print(f"{'way':<12}{'total':>10}{'over messages':>15}{'wait':>10}{'least wait':>12}")
        for way, seconds in found.items():
            total, wait, least = 1e3 * np.median(seconds, axis=0)
            ratio = np.median(seconds[:, 0] / found["messages"][:, 0])
            print(f"{way:<12}{total:>10.1f}{ratio:>15.3f}{wait:>10.1f}{least:>12.1f}")
        print(json.dumps({way: np.median(s, axis=0).round(5).tolist() for way, s in found.items()}))


if __name__ == "__main__":
    main()
