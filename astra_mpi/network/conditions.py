"""Under which conditions a model runs: network, clock, deadline. Options as given -> what the engine is made with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.network.clock import CLOCKS, WallClock, make_clock
from astra_mpi.network.missing import Missing
from astra_mpi.network.spec import REAL, Network, parse_network
from astra_mpi.network.units import duration_s

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Conditions:
    """The real network, the wall's clock and no deadline, unless said otherwise."""

    network: Network = REAL
    clock: str = "wall"
    speed: tuple[float, ...] = (1.0,)  # CPU seconds count this many times: one factor, or one per rank
    missing: Missing = field(default_factory=Missing)

    def make_clock(self, comm: MPI.Comm) -> WallClock:
        """Collective."""
        return make_clock(comm, self.clock, self.speed, self.network.rate is not None)


def parse_conditions(
    size: int,
    *,
    network: str = "real",
    accounting: str = "port",
    clock: str = "wall",
    speed: float | Sequence[float] = 1.0,
    deadline: str | None = None,
    missing: str = "auto",
    seed: int = 0,
) -> Conditions:
    """Options of `astra_mpi.load` for `size` ranks. InputError on values that do not exist or do not go together."""
    speeds = tuple(float(s) for s in ([speed] if isinstance(speed, int | float) else speed))
    told = ",".join(f"{s:g}" for s in speeds)
    over = parse_network(network, accounting)
    require(
        over.rate is not None or accounting == "port",
        f"accounting '{accounting}' is for emulated networks; give --network, such as 100Mbps, or leave it out",
    )
    require(clock in CLOCKS, f"clock '{clock}' is unknown; use one of {', '.join(CLOCKS)}")
    require(
        len(speeds) in (1, size) and all(0 < s < np.inf for s in speeds),
        f"speed {told} does not fit {size} ranks; give one number above 0, or one per rank",
    )
    require(clock == "virtual" or set(speeds) == {1.0}, f"speed {told} is for the virtual clock; add --clock virtual")
    require(
        clock == "wall" or over.rate is not None or size == 1,
        "the virtual clock cannot time the real network; give --network, such as 100Mbps,rtt=1ms",
    )
    require(seed >= 0, f"seed {seed} is negative; give 0 or more")
    return Conditions(over, clock, speeds, Missing(missing, _deadline_s(deadline), seed))


def _deadline_s(text: str | None) -> float | None:
    try:
        return None if text is None else duration_s(text)
    except InputError as exc:
        raise InputError(f"deadline: {exc}") from exc
