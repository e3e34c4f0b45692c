"""New tokens over stages of blocks: a row per token goes from stage to stage, other prompts' rows behind it.

Prompts are in groups, of which one is in each stage. The first stage knows the ids, and says which sequences go on. The
last one hands rows back to it or, where it has the head, ids. In a stage, the rank with a sequence's last token decodes
it alone, as `Local` does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.config import require
from astra_mpi.decode.generation import agreed, check
from astra_mpi.decode.request import Request
from astra_mpi.errors import AstraError, collective, raise_together
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.stages.group import Group
from astra_mpi.stages.handing import StageFailed
from astra_mpi.stages.report import Tally, generation_report
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.strategies.wire import pack_rows, row_bytes, unpack_rows
from astra_mpi.wire.hop import Hop
from astra_mpi.wire.laps import PHASES


def generate(pipeline: Any, ids: np.ndarray, mask: np.ndarray | None, request: Request) -> np.ndarray:
    """Collective: as `decode.generation.generate`, over the stages of a `Pipeline`."""
    with collective(pipeline.comm):
        require(request.decode != "merged", "decode = 'merged' needs all blocks on every rank; use local")
        check(pipeline, replace(request, decode="local"))
    streams = agreed(pipeline.comm, request)
    batches = pipeline.batches(ids, mask, pipeline.n_stages)
    generation = Generation(pipeline, batches, request, streams)
    generation.prefill()
    generation.decode()
    new = generation.ids()
    pipeline.report = generation_report(generation, new)
    return new


class Generation:
    """One call of `generate` on this rank."""

    def __init__(self, pipeline: Any, batches: list[Batch], request: Request, streams: bool) -> None:
        self.pipeline, self.request, self.streams = pipeline, request, streams
        self.model, self.comm = pipeline.model, pipeline.comm
        firsts = np.cumsum([0, *(len(batch.lengths) for batch in batches)])
        with collective(self.comm):
            self.groups = [Group(pipeline, b, int(n), request) for b, n in zip(batches, firsts, strict=False)]
        for group in self.groups:
            group.layout = pipeline.layout(group.batch.lengths, spread=True)
        with collective(self.comm):  # which takes memory
            for group in self.groups:
                group.open(pipeline)
        last = pipeline.n_stages - 1
        sources = pipeline.ranks_of(last) if pipeline.stage == 0 else []
        targets = pipeline.ranks_of(0) if pipeline.stage == last else []
        #: what comes back from the last stage to the first
        self.back = Hop(self.comm, sources, targets, pipeline.token, pipeline.hop.network, self.model.clock)
        self.samples = pipeline.stage == pipeline.head_stage
        self.failure: Exception | None = None

    def prefill(self) -> None:
        """Collective: the prompts through all blocks, group after group."""
        pipeline, strategy = self.pipeline, self.model.strategy
        assert isinstance(strategy, TokenParallel)
        modes = [group.mode for group in self.groups]

        def before(part: int) -> None:
            mode = modes[part]
            assert mode is not None
            strategy.cache, strategy.keeps_codes = mode.cache, self.request.far == "codes"

        def last_rows(rows: np.ndarray, layout: Layout) -> np.ndarray:
            mode = modes[pipeline.at]
            assert mode is not None
            return mode.prefilled(rows, layout)

        self.tally = Tally(pipeline)
        layouts = [group.layout for group in self.groups if group.layout is not None]
        try:
            pipeline.passes([group.batch for group in self.groups], layouts, self.tally, last_rows, 0, before=before)
        finally:
            strategy.cache = None
        self.first_handed = pipeline.hop.n_bytes

    def decode(self) -> None:
        """Collective: all steps."""
        pipeline, clock, laps = self.pipeline, self.model.clock, self.model.laps
        self.step_s: list[float] = []
        self.seconds = dict.fromkeys(PHASES, 0.0)
        with clock.running():
            laps.start()
            self.start_s = clock.now()
            if pipeline.stage == pipeline.n_stages - 1:
                for group in self.groups:
                    if not group.over:
                        self._begin_back(group)
            if pipeline.stage == 0:
                self._lead()
            else:
                self._follow()
            laps.mark("exchange")
        self.decoding = dict(laps.seconds)
        pipeline.hop.settle()
        self.back.settle()
        raise_together(self.comm, None if isinstance(self.failure, StageFailed) else self.failure)

    def _lead(self) -> None:
        """The first stage: what comes back of each group, and its next step."""
        for step in range(self.request.max_new_tokens):
            for group in self.groups:
                if group.over:
                    continue
                try:
                    self._take(group, group.alive, step)
                except Exception as exc:
                    self._fail(exc)
                self._send_on(group, step + 1)
            self._told(step)
            if all(group.over for group in self.groups):
                return

    def _take(self, group: Group, alive: np.ndarray, step: int) -> None:
        """What came back: the ids of `step`, or the rows to make them of."""
        received = self.back.receive()
        self.model.laps.mark("exchange")
        if not received.well:
            raise StageFailed
        if self.samples:
            ids = self._sampled(group, self._rows(received.data), alive, step)
        else:
            ids = received.data.view(np.int32)
        wanted = ~group.ended[alive]  # until nobody wanted more, since these were sent
        alive, ids = alive[wanted], ids[wanted]
        group.new[alive, step] = ids
        ended = np.isin(ids, self.request.stop) | (step + 1 >= group.room[alive])
        if self.request.ends is not None:
            for i in np.flatnonzero(~ended):
                ended[i] = self.request.ends(group.new[alive[i], : step + 1])
        group.ended[alive] |= ended

    def _send_on(self, group: Group, step: int) -> None:
        """The sequences that go on, with their rows after this stage's blocks; none: the group is over."""
        assert group.mode is not None
        computed = group.mode.computed
        group.alive = alive = computed[~group.ended[computed]]
        if self.failure is None and len(alive):
            try:
                rows = group.step(group.new[alive, step - 1].astype(np.int64), alive, step)
                self._hand_on(alive, rows)
                self.model.meanwhile()
                return
            except Exception as exc:
                self._fail(exc)
        group.over = True
        self.pipeline.hop.send(np.zeros(1, np.int64).view(np.uint8))

    def _hand_on(self, alive: np.ndarray, rows: np.ndarray) -> None:
        header = np.array([len(alive), *alive], np.int64).view(np.uint8)
        packed = pack_rows(self.model.backend.fetch(rows), self.pipeline.handed_on)
        self.pipeline.hop.send(np.concatenate([header, packed]))
        self.model.laps.mark("exchange")

    def _follow(self) -> None:
        """A stage behind the first: what comes, group after group, until all are over."""
        steps = [0] * len(self.groups)
        while not all(group.over for group in self.groups):
            for i, group in enumerate(self.groups):
                if not group.over:
                    steps[i] += 1
                    self._pass_on(group, steps[i])

    def _pass_on(self, group: Group, step: int) -> None:
        received, last = self.pipeline.hop.receive(), self.pipeline.stage == self.pipeline.n_stages - 1
        self.model.laps.mark("exchange")
        hop = self.back if last else self.pipeline.hop
        n = int(received.data[:8].view(np.int64)[0]) if received.well else 1
        if n == 0:
            group.over = True
            if not last:
                hop.send(received.data)
            return
        try:
            if not received.well:
                raise StageFailed
            alive = received.data[8 : 8 * (1 + n)].view(np.int64)
            group.rows = self.model.backend.put(np.array(self._rows(received.data[8 * (1 + n) :])))
            rows = group.step(np.zeros(n, np.int64), alive, step)
            if last:
                self._give_back(group, rows, alive, step)
            else:
                self._hand_on(alive, rows)
        except Exception as exc:
            self._fail(exc)
            hop.send(np.empty(0, np.uint8), well=False)

    def _begin_back(self, group: Group) -> None:
        """After the prefill: the rows of the last tokens, or the first ids."""
        assert group.mode is not None
        try:
            self._give_back(group, group.mode.first(np.empty(0)), group.mode.computed, 0)
        except Exception as exc:
            self._fail(exc)
            self.back.send(np.empty(0, np.uint8), well=False)

    def _give_back(self, group: Group, rows: np.ndarray, alive: np.ndarray, step: int) -> None:
        if self.samples:
            ids = self._sampled(group, rows, alive, step)
            self.back.send(np.ascontiguousarray(ids, np.int32).view(np.uint8))
        else:
            self.back.send(pack_rows(self.model.backend.fetch(rows), self.pipeline.handed_on))
        self.model.laps.mark("exchange")

    def _rows(self, data: np.ndarray) -> np.ndarray:
        """A message as rows (n, D) float32."""
        kind, width = self.pipeline.handed_on, self.pipeline.config.d_model
        return np.array(unpack_rows(np.array(data).reshape(-1, row_bytes(width, kind)), kind), np.float32)

    def _sampled(self, group: Group, rows: np.ndarray, alive: np.ndarray, step: int) -> np.ndarray:
        assert group.mode is not None
        logits = group.mode.logits(rows)
        ids = np.asarray(self.request.sample(logits, alive + group.first, step))
        self.model.laps.mark("head")
        good = ids.shape == alive.shape and ids.dtype.kind in "iu"
        if not good or ((ids < 0) | (ids >= logits.shape[1])).any():
            raise AstraError(
                f"sample gave {ids.dtype} of shape {ids.shape} at step {step}; it must give {len(alive)} token ids in"
                f" 0..{logits.shape[1] - 1}"
            )
        return ids.astype(np.int32)

    def _fail(self, failure: Exception) -> None:
        self.failure = self.failure or failure

    def _told(self, step: int) -> None:
        """On rank 0 after each step, where it knows all ids."""
        self.step_s.append(self.model.clock.now() - self.start_s - sum(self.step_s))
        if not (self.streams and self.comm.Get_rank() == 0 and self.pipeline.groups.grid.tokens == 1):
            return
        try:
            assert self.request.on_tokens is not None
            if self.failure is None:
                self.request.on_tokens(step, np.concatenate([group.new[:, step] for group in self.groups]))
            if self.request.enough is not None and self.request.enough():
                for group in self.groups:
                    group.ended[:] = True
        except Exception as exc:
            self._fail(exc)

    def ids(self) -> np.ndarray:
        """Collective: all new tokens on every rank."""
        new = np.concatenate([group.new for group in self.groups])
        if self.pipeline.stage:
            new[:] = -1
        self.comm.Allreduce(MPI.IN_PLACE, new, op=MPI.MAX)
        if self.streams and self.pipeline.groups.grid.tokens > 1:
            self._replayed(new)
        return new

    def _replayed(self, new: np.ndarray) -> None:
        """Collective: where ranks share tokens, rank 0 knows ids in the end only."""
        with collective(self.comm):
            if self.comm.Get_rank() == 0 and self.request.on_tokens is not None:
                for step in range(int((new >= 0).sum(axis=1).max(initial=0))):
                    self.request.on_tokens(step, new[:, step].copy())
