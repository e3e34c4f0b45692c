"""What ranks would compute, in one process: slices of sequences as sequences of their own, whose far tokens are seen as
codes leave them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.predictor import inputs_before
from astra_mpi.device.xp import take
from astra_mpi.engine import Model
from astra_mpi.layout import Layout
from astra_mpi.models.decoder import Decoder
from astra_mpi.network.missing import Missing
from astra_mpi.partition import displs, even
from astra_mpi.strategies import Parts, Spec
from astra_mpi.strategies.far_keys import FarKeys
from astra_mpi.strategies.positions import PlacedRows, Positions
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.wire.pending import Pending

#: rows whose logits are computed at a time
LOGIT_ROWS = 256

#: tokens (n, width) at a block's site -> what other slices see of them, all the same or each its own (P, n, width); the
#: block's index comes first
See = Callable[[int, np.ndarray], np.ndarray]

#: an exchange's number -> (P, P) bool, which receivers do not hear which senders in it
Lost = Callable[[int], np.ndarray]


class AsCodes:
    """Tokens as their codes leave them. With predicted codes it follows the states of one pass, from block 0 on."""

    def __init__(
        self,
        blocks: Sequence[BlockCodec],
        config: CodecConfig,
        emulated: Emulated,
        near: np.ndarray | None = None,
        late: bool = False,
        lost: Lost | None = None,
    ) -> None:
        """near (n,): which tokens have all codes, in the order of ranks; None: all. late: predicted codes come after
        others have seen the token as they expected it, but in awaited blocks. lost: messages of predicted codes that do
        not come."""
        self.late, self.lost, self.n_exchanges = late, lost, 0
        self.blocks, self.config, self.emulated, self.near = blocks, config, emulated, near
        self.kernels = emulated.model.backend.kernels
        self.state: np.ndarray | None = None
        self.inputs: np.ndarray | None = None

    def __call__(self, i: int, x: np.ndarray) -> np.ndarray:
        block = self.blocks[i]
        if not self.config.predicts:
            return block.decode(block.encode(x, self.kernels, self.near), self.kernels)
        if i == 0:
            self.state = np.array(x, np.float32)
            self.inputs = self.emulated.inputs_before(self.state, self.config.inputs)
            if self.lost is not None:
                self.held = np.repeat(self.state[None], len(self.emulated.layouts), axis=0)
            return x
        assert block.predictor is not None and self.state is not None
        expected = block.predictor.predict(self.state, self.inputs, self.kernels)
        codes = block.encode(x - expected, self.kernels, self.near)
        added, is_late = block.decode(codes, self.kernels), self.late and self.config.is_late(i)
        self.state = expected + added
        if self.lost is not None:
            return self._held_apart(i, added, is_late)
        return expected if is_late else self.state

    def _held_apart(self, i: int, added: np.ndarray, is_late: bool) -> np.ndarray:
        """(P, n, D) what each slice holds of all tokens in block i, to which codes add (n, D) where they came."""
        assert self.lost is not None
        block = self.blocks[i]
        assert block.predictor is not None
        expected = np.stack([block.predictor.predict(held, self.inputs, self.kernels) for held in self.held])
        if block.bits_per_token:
            lost = self.lost(self.n_exchanges)
            self.n_exchanges += 1
            added = added * ~np.repeat(lost, self.emulated.layouts[0].counts.sum(axis=0), axis=1)[:, :, None]
        self.held = expected + added
        return expected if is_late else self.held


class Slices(TokenParallel):
    """Runs alone: every slice attends to itself, and to what `see` leaves of the far ones."""

    name = "slices"

    def __init__(self, parts: Parts, site: str) -> None:
        super().__init__(parts, Spec(self.name))
        self.site = site
        self.see: See = lambda i, x: x
        self.exact = np.empty(0, np.int64)  # which tokens all slices see as they are

    def cut(self, layouts: list[Layout]) -> None:
        """Plan passes over the rows of these ranks, one after another."""
        first = layouts[0]
        counts = np.concatenate([layout.counts[:, layout.rank] for layout in layouts])[:, None]
        self.begin(Layout(counts, 0, first.n_class, first.causal, replicas=1))
        rows = np.concatenate([layout.packed_rows for layout in layouts])
        self.here = PlacedRows(self.positions, rows, self.blocks)
        self.gathered = PlacedRows(self.positions, first.packed_content, self.blocks)
        self.tokens = np.concatenate([layout.far_index for layout in layouts])
        n_tokens = len(first.packed_content)
        self.apart = np.concatenate([layout.far_index + r * n_tokens for r, layout in enumerate(layouts)])
        self.offsets = displs(np.concatenate([np.diff(layout.far_offsets) for layout in layouts]))

    def _start(self, i: int, rows: np.ndarray) -> Pending | None:
        content = self.planned.content(rows)
        self.seen = self.see(i, content.copy())  # rows are turned in place
        if len(self.exact):
            self.seen = self.seen.copy()  # which may be a state that `see` goes on from
            self.seen[..., self.exact, :] = content[self.exact]
        return None

    def far_keys(self, i: int, pending: Pending | None) -> FarKeys | None:
        block, seen = self.blocks[i], self.seen.reshape(-1, self.seen.shape[-1])
        if self.site != "kv":
            seen = block.keys_values(block.attention_input(seen) if self.site == "hidden" else seen)
        rows = self.tokens if self.seen.ndim == 2 else self.apart
        return FarKeys(take(seen, rows), self.offsets, tokens=self.tokens)


class Emulated:
    """Some sequences, cut into slices, on their way through a model of one process."""

    def __init__(
        self,
        model: Model,
        inputs: np.ndarray,
        mask: np.ndarray | None,
        site: str,
        n_slices: int,
        sinks: int = 0,
        n_new: int = 0,
    ) -> None:
        """sinks: first tokens of each sequence of a decoder that all slices see as they are. n_new: last ones,
        which the last slice has beside its share of the others, as it has those that it decodes."""
        model.strategy = self.slices = Slices(model.parts(), site)
        self.model = model
        batch = model.prepare(inputs, mask)
        counts = np.stack([even(max(int(n) - n_new, 0), n_slices) for n in batch.lengths])
        counts[:, -1] += batch.lengths - counts.sum(axis=1)
        config, causal = model.config, model.family.causal
        self.layouts = [Layout(counts, r, config.n_class, causal, replicas=n_slices) for r in range(n_slices)]
        self.lengths = batch.lengths
        self.slices.positions = Positions(model.family, batch)
        self.slices.cut(self.layouts)
        if sinks:
            self.slices.exact = np.flatnonzero(replace(self.layouts[0], sinks=sinks).gathered_sinks)
        self.rows = np.concatenate([model.family.embed(batch, layout) for layout in self.layouts])

    def lost(self, share: float, seed: int) -> Lost:
        """On a network that loses this share of its messages: those that ranks lose of this batch with this seed."""
        size = len(self.layouts)
        receivers = [Missing(seed=seed) for _ in range(size)]
        for rank, missing in enumerate(receivers):
            missing.reset(self.model.checksum, share, rank, size)
        return lambda i: np.stack([missing.lost(i) for missing in receivers])

    def inputs_before(self, x: np.ndarray, n: int) -> np.ndarray | None:
        """What enters block 0 (T, D), in the order of ranks -> (T, n D), of tokens and of those before."""
        if n == 0:
            return None
        first = self.layouts[0]
        found = inputs_before(x[first.sequence_order], self.lengths, n)
        assert found is not None
        return found[first.everything_places]

    @property
    def n_tokens(self) -> int:
        """Content tokens of all sequences."""
        return int(self.lengths.sum())

    def passed(self, see: See, rows: np.ndarray, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows (n, D) before block `first`, which stay as they are -> rows before block `stop`, or after the last."""
        self.slices.see = see
        rows = rows.copy()
        for i in range(first, len(self.model.blocks) if stop is None else stop):
            rows = self.slices.block(i, rows)
        return rows

    def answer(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n, D) after the last block -> logits (n, V) of a decoder, what an encoder answers (B, ..), or its
        hidden states (n, D) if its pooling attends."""
        family = self.model.family
        if isinstance(family, Decoder) or self.model.config.merged_heads:
            return family.final(rows)
        ends = displs(np.array([int(layout.row_offsets[-1]) for layout in self.layouts]))
        shares = [family.pool(rows[a:b], layout) for (a, b), layout in zip(pairwise(ends), self.layouts, strict=True)]
        return family.head(np.sum(shares, axis=0), self.lengths)


class Change:
    """How far an answer is from the exact one, a mean over tokens or sequences: the Kullback-Leibler divergence of a
    decoder's logits in nats, or 1 - cosine of what an encoder gives."""

    def __init__(self, emulated: Emulated, rows: np.ndarray) -> None:
        """rows (n, D): the exact ones after the last block."""
        self.emulated, self.decodes = emulated, isinstance(emulated.model.family, Decoder)
        self.exact = self._logarithms(rows) if self.decodes else [emulated.answer(rows)]

    def __call__(self, rows: np.ndarray) -> float:
        if not self.decodes:
            a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (self.exact[0], self.emulated.answer(rows)))
            norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
            return float(np.mean(1 - np.einsum("nd,nd->n", a, b) / np.maximum(norms, np.finfo(np.float64).tiny)))
        total = 0.0
        for exact, part in zip(self.exact, self._parts(rows), strict=True):
            other = self._logarithm(part)
            np.subtract(exact, other, out=other)
            total += float(np.einsum("nv,nv->", np.exp(exact), other, dtype=np.float64))
        return max(total / len(rows), 0.0)

    def _logarithms(self, rows: np.ndarray) -> list[np.ndarray]:
        return [self._logarithm(part) for part in self._parts(rows)]

    def _logarithm(self, rows: np.ndarray) -> np.ndarray:
        """(n, V) float32: the logarithms of the next token's probabilities."""
        logits = self.emulated.answer(rows)
        logits = logits - logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True, dtype=np.float64)).astype(np.float32)
        return logits

    @staticmethod
    def _parts(rows: np.ndarray) -> list[np.ndarray]:
        return [rows[a : a + LOGIT_ROWS] for a in range(0, len(rows), LOGIT_ROWS)]
