"""A model over stages of blocks, called as one: some sequences are in one stage while others are in the next."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.costs.stages import Parting, parting
from astra_mpi.decode.drafts import MOST_DRAFTS
from astra_mpi.decode.request import Ends, OnTokens, Request
from astra_mpi.decode.sampling import Sample, greedy
from astra_mpi.engine import Model
from astra_mpi.errors import InputError, collective, raise_together, same_on_all
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.gathered import rows_of_all, whole
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import Decoder
from astra_mpi.partition import displs, even
from astra_mpi.ranks.grid import Groups
from astra_mpi.stages.around import Around
from astra_mpi.stages.generation import generate
from astra_mpi.stages.handing import Handing
from astra_mpi.stages.part import Part
from astra_mpi.stages.pieces import Piece, goes_in_pieces, pieces_of, widens
from astra_mpi.stages.report import Tally, report_of
from astra_mpi.strategies import parse
from astra_mpi.wire.hop import Hop


def _nothing(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """To sum up, (B, 0)."""
    return np.zeros((len(layout.counts), 0), np.float32)


def _in_order(xp: Any, parts: list[np.ndarray], places: list[np.ndarray | slice]) -> np.ndarray:
    """Rows of all pieces, where they are in the whole part."""
    if len(parts) == 1:
        return parts[0]
    whole = xp.empty((sum(len(part) for part in parts), parts[0].shape[1]), parts[0].dtype)
    for part, place in zip(parts, places, strict=True):
        whole[xp.asarray(place)] = part
    return whole


class Pipeline(Around):
    """The stage of this rank, and calls that go through all. What is not said here is that of the stage's model.

    A call is collective over the ranks of a replica, with the same inputs on each.
    """

    def __init__(self, model: Model, file: ModelFile, groups: Groups, parts: list[Part], handed_on: str) -> None:
        """model: of this stage's blocks, on the ranks that share them. file: the whole model's, whose config and codec
        count; of its weights this rank may have read its own only."""
        self.model, self.groups, self.parts = model, groups, parts
        self.config, self.codec = file.config, file.codec
        self.comm = groups.replica
        _, self.stage, self.token = groups.place
        self.n_stages = groups.grid.stages
        self.head_stage = next(s for s, part in enumerate(parts) if part.has_head)
        last = self.stage == self.n_stages - 1
        ends = self.ranks_of(self.stage - 1) if self.stage else [], [] if last else self.ranks_of(self.stage + 1)
        self.hop = Hop(self.comm, *ends, self.token, model.exchange.network, model.clock)
        self.handing = Handing(model, self.hop, self.stage, handed_on)
        model.enter, model.hands_on = (self._entered if self.stage else None), not last
        #: reads the whole model file, for those who check answers
        self.read_whole: Callable[[], ModelFile] | None = None
        self.report: dict[str, Any] = {}
        self._layouts: dict[tuple[bytes, bool, Any], Layout] = {}

    @property
    def handed_on(self) -> str:
        """As what rows go to the next stage."""
        return self.handing.kind

    @handed_on.setter
    def handed_on(self, kind: str) -> None:
        self.handing.kind = kind

    def ranks_of(self, stage: int) -> list[int]:
        """Of the replica, those of a stage by their places."""
        n = self.groups.grid.tokens
        return [stage * n + place for place in range(n)]

    @property
    def meanwhile(self) -> Any:
        return self.model.meanwhile

    @meanwhile.setter
    def meanwhile(self, meanwhile: Any) -> None:
        self.model.meanwhile = meanwhile

    def use(self, strategy: str, *, counted_keys: bool = True, remote: str = "auto") -> None:
        """As `Model.use`. Only the first stage has the inputs, and so a first block without codes."""
        spec = parse(strategy)
        if self.stage and spec.values.get("first") == "inputs":
            spec = replace(spec, values={**spec.values, "first": "codes"})
        self.model.use(str(spec), counted_keys=counted_keys, remote=remote)
        self._layouts.clear()

    def obstacle(self, strategy: str) -> str | None:
        """As `Model.obstacle`."""
        if parse(strategy).name == "bp":
            return "its blocks are those of another architecture, in groups that stages would cut"
        return self.model.obstacle(strategy)

    def __call__(
        self, inputs: np.ndarray, mask: np.ndarray | None = None, gather: bool = False, spread: bool = False
    ) -> Any:
        """As `Model.__call__`; every rank gets the answers. With `gather` the batch goes through in one part."""
        family = self.model.family
        batches = self.batches(inputs, mask, 1 if gather else None)
        layouts = [self.layout(batch.lengths, spread) for batch in batches]
        tally = Tally(self)
        passes = self.passes(batches, layouts, tally, family.pool, family.share_width, self.config.merged_heads)
        pooled = self._shared(np.concatenate([share for _, share in passes]), self.n_stages - 1)
        lengths = np.concatenate([batch.lengths for batch in batches])
        answer = np.zeros((0, 0), np.float32)
        with collective(self.comm):
            if self.stage == self.head_stage:
                with self.model.clock.running():
                    self.model.laps.start()
                    answer = self.model.backend.fetch(family.head(self.model.backend.put(pooled), lengths))
                    self.model.laps.mark("head")
                    tally.add(self.model.laps.seconds)
        answer = self._shared(answer, self.head_stage)
        self.report = report_of(self, lengths, tally)
        return (answer, self._gathered(passes[0][0], layouts[0])) if gather else answer

    def nll(self, ids: np.ndarray, mask: np.ndarray | None, n_context: np.ndarray) -> np.ndarray:
        """As `Model.nll`. Rows of the last stage go to the stage with the head, if that is another."""
        family = self.model.family
        if not isinstance(family, Decoder):
            raise InputError(f"a {self.config.family} model predicts no tokens; give a decoder, such as Llama")
        batches = self.batches(ids, mask)
        layouts = [self.layout(batch.lengths) for batch in batches]
        tally = Tally(self)
        passes = self.passes(batches, layouts, tally, _nothing, 0)
        first, sums = 0, []
        for batch, layout, (rows, _) in zip(batches, layouts, passes, strict=True):
            own = n_context[first : first + len(batch.lengths)]
            first += len(batch.lengths)
            rows, share = self._at_head(rows, layout), np.zeros((len(own), 2), np.float32)
            with collective(self.comm):
                if self.stage == self.head_stage:
                    share = family.nll(rows, layout, batch, own)
            if self.stage == self.head_stage:
                share, _ = self.model.exchange.sum(share, False)
            sums.append(self._shared(share, self.head_stage))
        self.report = report_of(self, np.concatenate([batch.lengths for batch in batches]), tally)
        return np.concatenate(sums)

    def _at_head(self, rows: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) of a rank of the last stage, on the rank in the same place of the stage with the head."""
        last, n = self.n_stages - 1, self.groups.grid.tokens
        if self.head_stage == last:
            return rows
        if self.stage == last:
            self.comm.Send(np.ascontiguousarray(self.model.backend.fetch(rows), np.float32), self.token)
        elif self.stage == self.head_stage:
            rows = np.empty((int(layout.row_offsets[-1]), self.config.d_model), np.float32)
            self.comm.Recv(rows, self.token + n * last)
        return rows

    def generate(
        self,
        ids: np.ndarray,
        mask: np.ndarray | None = None,
        *,
        max_new_tokens: int,
        sample: Sample = greedy,
        stop: Sequence[int] = (),
        decode: str = "auto",
        far: str = "keys",
        on_tokens: OnTokens | None = None,
        ends: Ends | None = None,
        enough: Callable[[], bool] | None = None,
        draft: Any = None,
        draft_tokens: int = MOST_DRAFTS,
    ) -> np.ndarray:
        """As `Model.generate`, but without drafts. Where ranks share tokens, tokens are handed out in the end."""
        require(draft is None, "stages of blocks check no drafts; leave drafts out, or use a grid with one stage")
        return generate(
            self, ids, mask, Request(max_new_tokens, sample, tuple(stop), decode, on_tokens, ends, enough, far)
        )

    def batches(self, inputs: np.ndarray, mask: np.ndarray | None, n_parts: int | None = None) -> list[Batch]:
        """Collective: the batch in parts of whole sequences, checked on every rank; all ranks were given the same.
        n_parts: at most; None: as many as are soonest through."""
        mine = 0
        with collective(self.comm):
            whole = self.model.family.prepare(self.model.normalised(np.asarray(inputs)), mask)
            for array in (whole.lengths, whole.values, *(() if whole.types is None else (whole.types,))):
                mine = zlib.crc32(array.tobytes(), mine)
        every = np.empty(self.comm.Get_size(), np.int64)
        self.comm.Allgather(np.array([mine], np.int64), every)
        if (every != every[0]).any():
            raise same_on_all(InputError("the inputs differ between ranks; give every rank the same batch"))
        self.model.checksum = int(every[0])
        n = len(whole.lengths)
        bounds = displs(even(n, max(1, min(n_parts or self._parting(whole.lengths).parts, n))))
        return [whole.part(slice(int(a), int(b)), self.config.n_class) for a, b in pairwise(bounds)]

    def _parting(self, lengths: np.ndarray, n_parts: int | None = None) -> Parting:
        """What is soonest through all stages of sequences of these lengths (B,)."""
        size, stages = (len(lengths), int(lengths.sum())), (self.n_stages, self.groups.grid.tokens)
        how = {"in_pieces": goes_in_pieces(self.model), "widens": widens(self.model)}
        return parting(*size, *stages, **how, n_parts=n_parts)

    def layout(self, lengths: np.ndarray, spread: bool = False) -> Layout:
        """Collective: the first stage's cut, for all stages."""
        key = lengths.tobytes(), spread, self.model.strategy
        if key not in self._layouts:
            layout = self.model.layout(lengths, spread)
            counts = np.array(layout.counts)
            self.comm.Bcast(counts, root=0)
            if len(self._layouts) >= 64:
                self._layouts.clear()
            self._layouts[key] = layout if (counts == layout.counts).all() else replace(layout, counts=counts)
        return self._layouts[key]

    def passes(
        self,
        batches: list[Batch],
        layouts: list[Layout],
        tally: Tally,
        pool: Any,
        width: int,
        merged_heads: int = 0,
        before: Callable[[int], None] = lambda part: None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Collective: every part through this stage -> its rows here, and on the last stage what `pool` makes of it.
        before: called with the number of the part, before each of its pieces.

        A stage that fails tells the next one for each piece that it does not hand on.
        """
        model = self.model
        model.clock.meet(self.comm)
        self.hop.connect(model.exchange.network)
        n_pieces = self._parting(np.concatenate([batch.lengths for batch in batches]), len(batches)).pieces
        results, failure = [], None
        for self.at, (batch, layout) in enumerate(zip(batches, layouts, strict=True)):
            pieces = pieces_of(model, batch, layout, n_pieces)
            told: tuple[Any, int, int] = pool, width, merged_heads
            rows, pooled, failure = self._through(pieces, layout, told, partial(before, self.at), tally, failure)
            results.append((rows, pooled))
        self.hop.settle()
        raise_together(self.comm, failure)
        return results

    def _through(
        self,
        pieces: Iterator[Piece],
        layout: Layout,
        told: tuple[Any, int, int],
        before: Callable[[], None],
        tally: Tally,
        failure: Exception | None,
    ) -> tuple[np.ndarray, np.ndarray, Exception | None]:
        """One part of `passes` through this stage -> its rows, what is made of them, and what failed, now or before.
        told: `pool`, `width` and `merged_heads`."""
        model, last = self.model, self.stage == self.n_stages - 1
        rows = pooled = np.empty((0, 0), np.float32)
        parts: list[np.ndarray] = []
        places: list[np.ndarray | slice] = []

        def joined(own: np.ndarray, _: Layout) -> Any:
            return told[0](_in_order(model.backend.xp, [*parts, own], places), layout)

        for piece in pieces:
            self._handed = self._heard = False
            try:
                if failure is not None:
                    raise failure
                before()
                places.append(piece.rows)
                if not last:
                    model.run(piece.batch, piece.layout, self._hand_on, 0)
                elif not piece.is_last:
                    parts.append(model.run(piece.batch, piece.layout, _nothing, 0)[0])
                else:
                    rows, pooled = model.run(piece.batch, piece.layout, joined, *told[1:])
                    rows = _in_order(model.backend.xp, [*parts, rows], places)
                tally.add(model.laps.seconds, piece.layout)
            except Exception as exc:
                if self.stage and not self._heard:
                    self.handing.drain(piece.layout)  # what the stage before this one has sent
                failure = exc
                if not self._handed:
                    self.handing.fail(piece.layout)
        return rows, pooled, failure

    def _hand_on(self, rows: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) after this stage's blocks to the next stage -> nothing to sum up (B, 0)."""
        self.handing.send(rows, layout)
        self._handed = True
        self.model.laps.mark("exchange")
        return _nothing(rows, layout)

    def _entered(self, _: Batch) -> np.ndarray:
        """The rows (n, D) that are held here as the stage before hands them on."""
        self._heard = True
        return self.handing.receive(self.model.strategy.planned)

    def _shared(self, own: np.ndarray, stage: int) -> np.ndarray:
        """Collective: a float32 array (n, m) of the first rank of a stage on every rank."""
        root, shape = stage * self.groups.grid.tokens, np.array(own.shape, np.int64)
        self.comm.Bcast(shape, root=root)
        array = np.ascontiguousarray(own, np.float32) if self.comm.Get_rank() == root else np.empty(shape, np.float32)
        self.comm.Bcast(array, root=root)
        return array

    def _gathered(self, rows: np.ndarray, layout: Layout) -> np.ndarray | None:
        """Collective: `gathered` of the last stage's rows, on rank 0."""
        found, classes = None, np.empty((0, 0), np.float32)
        if self.stage == self.n_stages - 1:
            found, classes = rows_of_all(self.model, rows, layout)
        every = np.empty((0, self.config.d_model), np.float32) if found is None else found
        every, classes = (self._shared(part, self.n_stages - 1) for part in (every, classes))
        hidden = np.empty((0, 0), np.float32)
        shape = np.zeros(3, np.int64)
        with collective(self.comm):
            if self.stage == self.head_stage and self.token == 0:
                hidden = whole(self.model, every, classes, layout)
                hidden, shape[:] = hidden.reshape(len(hidden), -1), hidden.shape
        self.comm.Bcast(shape, root=self.head_stage * self.groups.grid.tokens)
        hidden = self._shared(hidden, self.head_stage)
        return hidden.reshape(shape) if self.comm.Get_rank() == 0 else None
