"""`Model.generate`: a prefill that keeps keys and values, then a pass per token, or for several that were drafted
(docs/explanation/decode.md, docs/explanation/drafts.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.caches.past import Past
from astra_mpi.config import require
from astra_mpi.decode.choice import predicted_mode
from astra_mpi.decode.drafting import Drafting
from astra_mpi.decode.passes import rows_of_pass
from astra_mpi.decode.prefill import Engine
from astra_mpi.decode.request import Request, reasons
from astra_mpi.decode.steps import MODES, Local
from astra_mpi.decode.tokens import Tokens
from astra_mpi.device.backend import compile_in_turn
from astra_mpi.errors import AstraError, InputError, collective, raise_together, same_on_all
from astra_mpi.kernels.cpu import token
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import Decoder
from astra_mpi.ranks.watched import alone
from astra_mpi.strategies.token_parallel import TokenParallel
from astra_mpi.wire.laps import collect


def generate(model: Engine, ids: np.ndarray, mask: np.ndarray | None, request: Request) -> np.ndarray:
    """Collective: new tokens of the prompts ids (B, T), mask (B, T) -> (B, max_new_tokens) int32, -1 after the end."""
    with collective(model.comm):
        check(model, request)
    batch = model.prepare(ids, mask)
    streams = agreed(model.comm, request)
    with collective(model.comm):
        first, room = request.room(batch, model.config)
    layout = model.layout(batch.lengths, spread=True)
    prompts = np.split(batch.values, np.cumsum(batch.lengths)[:-1])
    generation = Generation(model, request, layout, first, room, streams, prompts)
    generation.prefill(batch)
    generation.decode()
    model.report = generation.report()
    new = np.full((len(first), request.max_new_tokens), -1, np.int32)
    new[:, : generation.tokens.ids.shape[1]] = generation.tokens.ids
    return new


def check(model: Engine, request: Request) -> None:
    if not isinstance(model.family, Decoder):
        raise InputError(f"a {model.config.family} model generates no tokens; give a decoder, such as Llama")
    request.check(model.config)
    strategy = model.strategy
    if not isinstance(strategy, TokenParallel):
        raise InputError(
            f"strategy {strategy.spec} does not generate: its ranks keep no keys and values of whole tokens; "
            "use single, sp, segment_means or astra"
        )
    require(
        request.far == "keys" or strategy.may_keep_codes,
        "far = 'codes': these codebooks are of what a prediction misses, and codes alone do not say what a far token "
        "is; use far = 'keys'",
    )


def agreed(comm: MPI.Comm, request: Request) -> bool:
    """Collective: that all ranks ask for the same. Whether rank 0 streams."""
    mine = np.array([*request.digest, request.on_tokens is not None], np.int64)
    every = np.empty((comm.Get_size(), len(mine)), np.int64)
    comm.Allgather(mine, every)
    if (every[:, :-1] != every[0, :-1]).any():
        raise same_on_all(
            InputError("max_new_tokens, stop, decode, far or drafts differ between ranks; give every rank the same")
        )
    return bool(every[0, -1])


class Generation:
    """One call of `generate` on this rank."""

    def __init__(
        self,
        model: Engine,
        request: Request,
        layout: Layout,
        first: np.ndarray,
        room: np.ndarray,
        streams: bool,
        prompts: list[np.ndarray],
        past: Past | None = None,
    ) -> None:
        """first (B,): positions of the first new tokens; room (B,): how many there may be. streams: on rank 0. prompts:
        ids (T,) of each. past: of the conversation that this goes on with, alone on the rank with its last token."""
        self.model, self.request, self.first, self.room = model, request, first, room
        self.layout = layout
        mode = request.decode
        if mode == "auto":
            mode = predicted_mode(model, self.layout, request.max_new_tokens) if past is None else Local.mode
        if model.backend.name == "numpy":
            compile_in_turn(model.comm, token.warm_up)
        with collective(model.comm):  # which takes memory
            self.mode: Local = MODES[mode](model, self.layout, room, first, past)
        merged = self.mode.mode == "merged"
        sampler = np.zeros(len(first), np.int64) if merged else self.layout.last_rank
        self.tokens = Tokens(model.exchange, sampler, room, request, often=streams or merged, soon=merged)
        self.failure: Exception | None = None
        self.drafting: Drafting | None = None
        if request.draft is not None and len(self.mode.sampled):
            asked = {int(s): prompts[s] for s in self.mode.sampled}
            self.drafting = Drafting(request, asked, room, model.clock)
        if streams and model.comm.Get_rank() == 0:
            self.tokens.known = self._stream

    def prefill(self, batch: Batch) -> None:
        """Collective: the forward pass of the prompts."""
        strategy, exchange = self.model.strategy, self.model.exchange
        assert isinstance(strategy, TokenParallel)
        strategy.cache, strategy.keeps_codes = self.mode.cache, self.request.far == "codes"
        try:
            _, shared = self.model.run(batch, self.layout, self.mode.prefilled, self.mode.share_width)
        finally:
            strategy.cache = None
        self.rows = self.mode.first(shared)  # (n, D) of the sequences whose next token is sampled or computed here
        self._prefilled = dict(self.model.laps.seconds), exchange.counted()
        exchange.count_anew()

    def decode(self) -> None:
        """Collective: all passes. The last thing that ranks do together is to raise what failed on one of them."""
        clock, laps = self.model.clock, self.model.laps
        self.pass_s = np.zeros(self.tokens.ids.shape[1])
        self.n_passes = 0
        with clock.running():
            laps.start()
            while not self.tokens.over:
                start_s = clock.now()
                if not self._pass():
                    break
                if len(self.new.ids):
                    self._took(clock.now() - start_s)
                self.model.meanwhile()
            if self.failure is None:
                self._close()
        self.model.exchange.settle()
        raise_together(self.model.comm, self.failure)

    def _took(self, seconds: float) -> None:
        """Of a pass."""
        self.pass_s[self.n_passes] = seconds
        if self.drafting is not None and self.n_passes:
            self.drafting.took(len(self.new.ids), len(self.new.sequences), seconds)
        self.n_passes += 1

    def _pass(self) -> bool:
        """One token of every sequence that has not ended, and the drafts that follow it; False if that failed on this
        rank."""
        n_before = self.model.exchange.n_started
        self.new = rows_of_pass(self.mode.computed, self.tokens)
        self.mode.announce(len(self.new.ids))
        try:
            if self.failure is not None:
                raise self.failure  # of the callback
            with alone(self.model.comm, "decoding"):  # others may wait for the last of many passes
                self._advance()
            self.tokens.tell()
        except Exception as exc:
            self.failure = exc
            if self.n_passes:
                self.mode.abandon(n_before)
            self.tokens.abandon()
            return False
        for s, first, last in self.new.dropped(self.tokens) if self.n_passes else ():
            self.mode.drop(s, first, last)
        return True

    def _advance(self) -> None:
        """The sequences computed here by their new rows, and those sampled here by the ids that these give."""
        mode, new = self.mode, self.new
        if not len(new.ids):
            return
        if self.n_passes:
            self.rows = mode.step(new.ids, new.row_sequences, new.steps)
        if len(mode.sampled):
            logits = mode.logits(self.rows)
            self._sample(logits)
            self.model.laps.mark("head")
            if self.drafting is not None:
                self.drafting.go_on(self.tokens, new.sequences)
                self.model.laps.mark("draft")

    def _sample(self, logits: np.ndarray) -> None:
        """Row after row of every sequence, as long as what was drafted is what a row gives."""
        tokens, new = self.tokens, self.new
        alive, depth = np.arange(len(new.sequences)), 0
        while len(alive):
            sequences = new.sequences[alive]
            steps, ids = tokens.counts[sequences], np.empty(len(alive), np.int64)
            for step in np.unique(steps):
                now = steps == step
                ids[now] = self._sampled(logits[(new.first + depth)[alive[now]]], sequences[now], int(step))
            tokens.put(sequences, ids)
            drafted = tokens.drafts[sequences, depth] if depth < tokens.drafts.shape[1] else -1
            alive, depth = alive[(ids == drafted) & ~tokens.ended[sequences]], depth + 1

    def _sampled(self, logits: np.ndarray, sequences: np.ndarray, step: int) -> np.ndarray:
        ids = np.asarray(self.request.sample(logits, sequences, step))
        known = ids.shape == sequences.shape and ids.dtype.kind in "iu"
        if not known or ((ids < 0) | (ids >= logits.shape[1])).any():
            raise AstraError(
                f"sample gave {ids.dtype} of shape {ids.shape} at step {step}; it must give {len(sequences)} token ids "
                f"in 0..{logits.shape[1] - 1}"
            )
        return ids

    def _stream(self, step: int, ids: np.ndarray) -> None:
        """On rank 0. A failure is raised at the next step, or in the end: here, others may have gone on."""
        assert self.request.on_tokens is not None
        try:
            if self.failure is None:
                self.request.on_tokens(step, ids.copy())
        except Exception as exc:
            self.failure = exc

    def _close(self) -> None:
        try:
            self.tokens.close()
        except Exception as exc:
            self.failure = exc
            self.tokens.abandon()

    def _drafts(self) -> dict[str, Any] | None:
        """Collective: how many tokens were drafted, and how many of them were right."""
        if self.request.draft is None:
            return None
        own = (0, 0, 0) if self.drafting is None else (self.drafting.drafted, self.drafting.accepted, self.drafting.n)
        counted = np.array(own, np.int64)
        self.model.comm.Allreduce(MPI.IN_PLACE, counted, op=MPI.SUM)
        passes = np.array([max(self.n_passes - 1, 0)])
        self.model.comm.Allreduce(MPI.IN_PLACE, passes, op=MPI.MAX)
        drafted, accepted, checked = counted.tolist()
        return {
            "from": self.request.draft.name,
            "drafted": drafted,
            "accepted": accepted,
            "passes": int(passes[0]),  # after the first token
            "checks": checked,  # a pass, of a sequence
            "tokens_per_pass": (checked + accepted) / checked if checked else None,
        }

    def report(self) -> dict[str, Any]:
        """Collective: that of the prefill, and under "generation" what the steps took."""
        model, comm, config = self.model, self.model.comm, self.model.config
        report = model.describe(self.layout, *self._prefilled)
        latency, counted = collect(comm, model.laps.seconds, model.exchange.counted())
        first_s = np.array([sum(self._prefilled[0].values()) + self.pass_s[:1].sum()])
        comm.Allreduce(MPI.IN_PLACE, first_s, op=MPI.MAX)
        comm.Allreduce(MPI.IN_PLACE, self.pass_s, op=MPI.MAX)
        cached = np.zeros(comm.Get_size(), np.int64)
        comm.Allgather(np.array([self.mode.cache.n_bytes], np.int64), cached)
        n_new = (self.tokens.ids >= 0).sum(axis=1)
        n_later = max(int(n_new.max(initial=0)) - 1, 0)
        drafts = self._drafts()
        later_s = self.pass_s[1 : 1 + (n_later if drafts is None else drafts["passes"])]
        later_s = later_s * (len(later_s) / n_later) if n_later else later_s  # of a token
        row_bytes = config.n_layers * 2 * config.d_kv * np.dtype(model.backend.dtype).itemsize
        told = counted[:, 3].astype(np.int64)
        report["other_bytes"] += int(told.sum())
        report["choices"] |= {"decode": self.mode.mode}
        report["generation"] = {
            "decode": self.mode.mode,
            "far": self.request.far,
            "new_tokens": n_new.tolist(),
            "ended": reasons(self.request, self.room, self.tokens.ids),
            "first_token_s": float(first_s[0]),
            "per_token_s": {
                "median": float(np.median(later_s)) if len(later_s) else None,
                "mean": float(np.mean(later_s)) if len(later_s) else None,
            },
            "drafts": drafts,
            "latency_s": latency,
            "exchange_wait_s": latency["exchange_wait"],
            "decode_bytes": counted[:, 0].astype(int).tolist(),
            "id_bytes": told.tolist(),
            "cache_bytes": cached.tolist(),
            "full_cache_bytes": int((self.layout.lengths + self.room - 1).sum()) * row_bytes,
        }
        return report
