"""ASTRA (arXiv 2505.19342): remote tokens travel as vector-quantised codes, local attention keeps full precision.

Per block: encode own content tokens, start the all-gather of the packed codes, project and attend locally, then wait,
look the far keys and values up in the projected codebooks, and merge their attention. With `first = "inputs"` the first
block sends nothing: what enters it follows from the inputs, which every rank has. Nor does a block whose codes have no
bits: they are known. With `codes = "late"`, a block waits for the codes of the block before it (`late.py`), unless the
codec says that its own are awaited.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import pairwise
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from astra_mpi.caches.codes import CodeSpace
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.expected import Expected
from astra_mpi.codec.tables import FarTable
from astra_mpi.config import ModelConfig
from astra_mpi.costs.mapped import coded_wires, mean_wire
from astra_mpi.costs.wires import Wire, coding_of
from astra_mpi.costs.work import shape_of
from astra_mpi.device.xp import take, to_host
from astra_mpi.layout import Layout
from astra_mpi.models import FAMILIES
from astra_mpi.partition import displs
from astra_mpi.strategies.base import Parts, is_plain, recipe_of
from astra_mpi.strategies.coded.arrived import Arrived
from astra_mpi.strategies.coded.carried import Carried, Leaps
from astra_mpi.strategies.coded.graded import Graded, near_counts
from astra_mpi.strategies.coded.late import Late
from astra_mpi.strategies.coded.lookup import as_items, counted, looked_up
from astra_mpi.strategies.coded.remote import choose_remote
from astra_mpi.strategies.coded.states import States
from astra_mpi.strategies.far_codes import FarCodes
from astra_mpi.strategies.far_keys import FarKeys
from astra_mpi.strategies.reach import Reach
from astra_mpi.strategies.spec import Option, Spec
from astra_mpi.wire.pending import Pending


class Astra(FarCodes):
    """Codes of C * b bits per token and block. Every rank holds the same codebooks."""

    name = "astra"
    sends_reached = True
    options = (Option("first", "codes", ("codes", "inputs")), Option("codes", "fresh", ("fresh", "late"), special=True))
    may_miss = True

    def __init__(self, parts: Parts, spec: Spec) -> None:
        super().__init__(parts, spec)
        assert parts.codec is not None
        self.codec = parts.codec
        self.site = self.codec.config.site
        predicts = self.codec.config.predicts
        has_maps = self.codec.config.has_maps
        self.first_coded = int(has_maps or spec.word("first") == "inputs")  # the first block with an exchange
        self.begins_with_all = has_maps
        self.sends_reached, self.may_keep_codes = not has_maps, not predicts  # maps need all codes of a token
        self.near_share = 0.0  # of the tokens sent in the last pass, those that have more codes
        self.exchange.missing.suit(predicts)
        is_late, remote = spec.word("codes") == "late", parts.remote
        if predicts and is_late and remote == "auto" and not FAMILIES[self.config.family].causal:
            remote = "gemm"  # only decoding needs tables
        self.remote = choose_remote(self.exchange.comm, self.blocks, self.codec, self.kernels, remote)
        self.sinks = self.wire_costs().sinks if self.exchange.size > 1 else 0
        # one code fixes a far token's key and value only where the finished table row does, and positions do not
        rows = all(table.rows is not None for table in self.remote.tables)
        self.leaps = Leaps(self.blocks, self.codec, self.kernels) if predicts else None
        self.states = self._make_states()
        self.carried: Carried | None = None
        if has_maps and not predicts:
            self.carried = Carried(self.blocks, self.codec, self.remote.how, is_late, self.kernels)
        self.late: Late | None = Late(self) if is_late else None
        self.at_once = 1 if self.late is None else self.late.AT_ONCE
        self.packed = hasattr(self.kernels, "attend_packed")
        self.plain = is_plain(self.config, recipe_of(self.config))
        self.counted_keys = parts.counted_keys and rows and self.plain
        reads = self.packed or getattr(self.kernels, "reads_rows", lambda: False)()
        self.reads_rows = reads and self.plain  # of tables, where they are
        if self.exchange.size > 1 and self.xp is np:
            self.codec.make_ready(self.blocks[0].memory.keep, self.kernels)
        self.arrived = Arrived(self.codec, self.exchange.size, self.xp, self.kernels)
        self._spaces: dict[int, CodeSpace] = {}

    def _make_states(self) -> States | None:
        if self.leaps is None:
            return None
        return States(self.codec, cast("list[Expected]", self.remote.tables), self.leaps, self.kernels)

    def twin(self) -> Astra:
        twin = copy(self)
        twin.arrived = self.arrived.twin()
        twin.states, twin.late = self._make_states(), None if self.late is None else Late(twin)
        return twin

    @classmethod
    def obstacle(cls, spec: Spec, config: ModelConfig, codec: Codec | None, size: int) -> str | None:
        if codec is None:
            return "the model has no codebooks; run `astra-mpi calibrate` first"
        if codec.config.near and any(config.windows):
            return "more stages near slices are not for models with sliding windows; calibrate without --near"
        if spec.word("codes") == "late" and not codec.config.has_maps:
            return (
                "nothing stands for codes that are late; use codebooks of `astra-mpi calibrate --predict linear` or"
                " `--predict next`"
            )
        return None

    def bytes_in(self, i: int, layout: Layout) -> list[int]:
        codec, near = self.codec.blocks[i], near_counts(layout, self.codec.config.near)
        return [codec.message_bytes(int(n), int(m)) for n, m in zip(layout.sent_counts, near, strict=True)]

    def bytes_of(self, i: int, reach: Reach) -> list[int]:
        codec, near = self.codec.blocks[i], self.graded.counts
        pairs = zip(reach.token_counts, near, strict=True)
        return [codec.message_bytes(int(n), int(min(n, m))) for n, m in pairs]

    def wire_costs(self) -> Wire:
        return mean_wire(coded_wires(shape_of(self.config), coding_of(self.codec, self.remote.how)))

    @property
    def exchanging(self) -> tuple[int, ...]:
        coded = range(self.first_coded, self._n_coded) if self.sends else ()
        return tuple(i for i in coded if self.codec.blocks[i].bits_per_token)

    @property
    def _n_coded(self) -> int:
        """The blocks before this one may have an exchange."""
        return len(self.blocks) if self.late is None else self.late.n_coded

    def enter(self, embed: Callable[[Layout], np.ndarray]) -> np.ndarray:
        if not (self.first_coded and self.sends):
            return super().enter(embed)
        every = self.planned.everything
        rows = embed(every)
        self.begin_with(every.content(rows), None)
        return take(rows, self.planned.packed_rows)

    def begin_with(self, rows: np.ndarray, inputs: np.ndarray | None) -> None:
        planned = self.planned
        if self.states is not None:
            own = planned.everything_places[self._own]
            own = own if self.reach.own is None else own[self.reach.own]
            every = self.blocks[0].attention_input(rows).astype(np.float32, copy=False)
            self.states.begin(every, planned.lengths, own[:0] if self.unheard else own, planned.far_places, inputs)
        elif len(planned.far_places):
            self.far_inputs = take(rows, planned.far_places)  # (m, D)

    @property
    def first_inputs(self) -> np.ndarray | None:
        if self.states is None or self.states.first is None:
            return None
        return take(self.states.first, self.planned.everything_places[self._own])

    def _start(self, i: int, rows: np.ndarray) -> Pending | None:
        told = self.first_coded <= i < self._n_coded and (self.carried is None or self._has_bits(i))
        return super()._start(i, rows) if told else None

    def _has_bits(self, i: int) -> bool:
        """Whether block i has codes; late or not, they may still not be sent."""
        return self.codec.blocks[i].bits_per_token > 0

    def far_keys(self, i: int, pending: Pending | None) -> FarKeys | None:
        if not self.sends:
            return None
        if i < self.first_coded:
            return self._exact_keys(i)
        if self.late is not None:
            self.late.collect()
            if self._has_bits(i) and not self.late.awaits(i):
                return self._late_keys(self.late, i, pending)
        if pending is None:
            return self._known(i)
        if self.states is not None:  # while codes travel
            self.states.expect_far(i)
            self.states.expect_own(i + 1)
            self.laps.mark("decode")
        return self.receive(i, pending)

    def _exact_keys(self, i: int) -> FarKeys | None:
        """Of what enters block 0, which every rank has."""
        block, states = self.blocks[i], self.states
        if not len(self.planned.far_places):
            return None
        far = block.attention_input(self.far_inputs) if states is None else states.far.astype(self.dtype, copy=False)
        if self.carried is not None and self.carried.rows:
            self.far_exact = far.copy()
        return FarKeys(block.keys_values(far), self.planned.far_offsets)

    def _late_keys(self, late: Late, i: int, pending: Pending | None) -> FarKeys | None:
        """Without the codes of block i, but with those before them, which are there."""
        if self.states is None:
            far = self._carried_keys(i)
        else:
            _, offsets, tokens = self._far(i)
            far = FarKeys(self.states.expected_kv(i, late.keeps), offsets, tokens=tokens)
            self.states.expect_own(i + 1)
        late.leave(i, pending)
        return far

    def _carried_keys(self, i: int) -> FarKeys | None:
        """Of block i, from the last codes before it, or from what enters block 0."""
        assert self.carried is not None
        j = self.carried.source[i]
        if j:
            index, offsets, tokens = self._far(j)
            return self._looked_up(self.carried.tables[i], take(self.arrived.codes[j], index), offsets, tokens)
        if not len(self.planned.far_places):
            return None
        return FarKeys(self.carried.rows[i](self.far_exact, self.kernels), self.planned.far_offsets)

    def send(self, i: int, payload: np.ndarray) -> Pending | None:
        near = self.graded.mask(self.planned.rank)
        near = near if near is None or len(near) == len(payload) else near[:0]
        if self.states is None:
            codes = self.codec.blocks[i].encode(payload, self.kernels, near)  # (n_r, C)
        else:
            codes = self.states.codes(i, payload, near)
        message = self.codec.blocks[i].pack(codes, self.kernels, near) if self._has_bits(i) else None
        if self.cache is not None:
            self.cache.note_seen(i, codes)
        self.laps.mark("encode")
        return None if message is None else self.start(message)

    def receive(self, i: int, pending: Pending) -> FarKeys:
        self.take_codes(i, pending)
        return self._far_keys(i)

    def take_codes(self, i: int, pending: Pending) -> None:
        """Wait for the codes of block i."""
        messages, reach = pending.wait(), self.reaches[i]
        heard = set(reach.far_ranks.tolist())
        if self._exchanged(i)[0][self.planned.rank]:
            heard.add(self.planned.rank)
        self.arrived.take(i, messages, pending.missing, self._sent_counts(i), heard, self.graded)

    def keeps_now(self, i: int) -> bool:
        return self.late is None or self.late.awaits(i) or i not in self.exchanging

    def _known(self, i: int) -> FarKeys | None:
        """Far keys of a block whose codes have no bits: each is the first and only entry's, or follows from others."""
        self.no_codes(i)
        return self._far_keys(i) if self.carried is None else self._carried_keys(i)

    def no_codes(self, i: int) -> None:
        """Nothing is sent in block i, and nothing is missed."""
        self.arrived.take_none(i, int(self._sent_counts(i).sum()))

    def codes_came(self, i: int, keeps: bool) -> None:
        """The late codes of block i: they move states, and decoding keeps what they make of far keys, if it does."""
        if keeps:
            far = self._far_keys(i)
            self.turn_far(i, far)
            self.keep_far(i, far)
        elif self.states is not None:
            index, _, _ = self._far(i)
            self.states.move_far(i, take(self.arrived.codes[i], index), self._came(i, index))

    def _far_keys(self, i: int) -> FarKeys:
        """From the codes of block i."""
        index, offsets, tokens = self._far(i)
        far = take(self.arrived.codes[i], index)  # (m, C)
        if self.states is not None:
            return FarKeys(self.states.far_kv(i, far, self._came(i, index)), offsets, tokens=tokens)
        return self._looked_up(self.remote.tables[i], far, offsets, tokens)

    def _looked_up(self, table: FarTable, far: np.ndarray, offsets: np.ndarray, tokens: np.ndarray) -> FarKeys:
        """Of far codes (m, C), by a table."""
        if self.counted_keys:
            return counted(table, far, offsets, self.packed, self.reads_rows, self.kernels)
        return looked_up(table, far, offsets, tokens, self.reads_rows, self.kernels)

    def _came(self, i: int, index: np.ndarray) -> np.ndarray | None:
        """Of the gathered tokens `index` (m,), whose codes of block i came: see `Arrived.came`."""
        return self.arrived.came(i, self._sent_counts(i), index)

    def _sent_counts(self, i: int) -> np.ndarray:
        """(P,) tokens in each rank's message, with those that the last one of a forward exchange would send."""
        reach = self.reaches[i]
        return self.planned.token_counts if reach.sent is None else reach.token_counts

    def begin(self, layout: Layout) -> None:
        if self.late is not None:
            self.late.begin()
        super().begin(layout)
        self.arrived.begin()
        self.graded = Graded(layout, self.codec.config.near)
        self.near_share = self.graded.share if self.codec.config.near and self.sends else 0.0
        #: the last rank where tokens look back only
        self.unheard = layout.forward and layout.rank == self.exchange.size - 1
        self._far_turns: dict[tuple[int, bytes], np.ndarray] = {}  # of far tokens that are kept

    def end(self) -> None:
        if self.late is not None:
            self.late.collect()
        self.arrived.end()

    def distinct_keys(self) -> float | None:
        if self.states is not None:  # no two tokens have the same
            return None
        if not self.sends:
            return 0.0
        found = []
        for i in range(self.first_coded, len(self.arrived.codes)) if self.carried is None else self.exchanging:
            index, offsets, _ = self._far(i)
            items = as_items(to_host(self.arrived.codes[i])[index])
            found += [len(np.unique(items[a:b])) for a, b in pairwise(offsets)]
        mean = np.array([np.mean(found) if found else 0.0])
        if self.planned.causal:
            self.exchange.comm.Allreduce(MPI.IN_PLACE, mean, op=MPI.MAX)
        return float(mean[0])

    def describe(self) -> dict[str, Any]:
        config = self.codec.config
        first = {} if self.states is None else {"first": "inputs"}
        choices = {**self.spec.values, **first, "remote": self.remote.how, "counted_keys": self.counted_keys}
        return {
            "codec": config.as_dict(),
            "bits_per_token_per_block": config.mean_bits(
                len(self.blocks), self.first_coded, self.near_share, self._n_coded
            ),
            "choices": choices | ({"sinks": self.sinks} if self.sinks else {}),
        }

    def oracle_terms(self) -> dict[str, Any]:
        if not self.sends:
            return {}
        n = len(self.planned.sequence_order)
        coded = [
            self.reaches[i].spread(to_host(self.arrived.codes[i]), n) for i in range(self.first_coded, len(self.blocks))
        ]
        terms: dict[str, Any] = {"codec": self.codec, "codes": [to_host(codes) for codes in coded]}
        if self.exchange.loses or self.planned.causal or any(self.config.windows):  # what was sent, whoever heard it
            terms["codes"] = [self.all_rows(codes[self._own]) for codes in coded]
        terms |= {"first_coded": self.first_coded, "sinks": self.planned.sinks, "late": self.late is not None}
        return terms | self._missing_terms() if self.exchange.loses else terms

    @property
    def _own(self) -> slice:
        """This rank's tokens among the gathered ones."""
        ends = displs(self.planned.token_counts)
        return slice(ends[self.planned.rank], ends[self.planned.rank + 1])

    def _missing_terms(self) -> dict[str, Any]:
        """Collective: which messages did not arrive, and what stood for them."""
        missing = np.empty((self.planned.size, *self.arrived.missing.shape), bool)  # (P, L, P)
        self.exchange.comm.Allgather(self.arrived.missing, missing)
        means = (
            [to_host(codes)[0] for codes in self.arrived.means] if self.exchange.missing.treatment == "mean" else None
        )
        return {"missing": missing.transpose(1, 0, 2), "stand_in": means}
