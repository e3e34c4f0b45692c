"""What decoding needs of the engine: a forward pass over the ranks that keeps keys and values, and what it ran with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.decode.compiled import CompiledBlocks
from astra_mpi.device.backend import Backend
from astra_mpi.device.scratch import Scratch
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.block import Block
from astra_mpi.models.family import Family
from astra_mpi.network.clock import WallClock
from astra_mpi.strategies import Strategy
from astra_mpi.wire.exchange import Exchange
from astra_mpi.wire.laps import Laps

if TYPE_CHECKING:
    from mpi4py import MPI


class Engine(Protocol):
    """A model at work on the ranks of one communicator: `engine.Model`, which decoding does not import."""

    comm: MPI.Comm
    backend: Backend
    config: Any
    codec: Codec | None
    digest: str
    family: Family
    blocks: list[Block]
    strategy: Strategy
    exchange: Exchange
    scratch: Scratch
    clock: WallClock
    laps: Laps
    report: dict[str, Any]
    meanwhile: Callable[[], None]

    @property
    def compiled(self) -> CompiledBlocks | None:
        """The blocks as compiled calls compute them; None where they cannot."""

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None) -> Batch:
        """Collective: checked inputs, the same on all ranks."""

    def layout(self, lengths: np.ndarray, spread: bool = False) -> Layout:
        """Collective: who holds which tokens."""

    def run(
        self, batch: Batch, layout: Layout, pool: Callable[[np.ndarray, Layout], np.ndarray], width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Collective: the rows (n, D) of this rank, and what `pool` makes of them, (B, width), summed up."""

    def describe(self, layout: Layout, seconds: dict[str, float], counts: Sequence[float]) -> dict[str, Any]:
        """Collective: the report of a pass."""
