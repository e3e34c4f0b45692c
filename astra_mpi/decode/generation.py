"""`Model.generate`: a prefill that keeps keys and values, then one step per token (docs/explanation/decode.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.caches.past import Past
from astra_mpi.config import require
from astra_mpi.decode.choice import predicted_mode
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
    generation = Generation(model, request, layout, first, room, streams)
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
            InputError("max_new_tokens, stop, decode or far differ between ranks; give every rank the same")
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
        past: Past | None = None,
    ) -> None:
        """first (B,): positions of the first new tokens; room (B,): how many there may be. streams: on rank 0. past:
        of the conversation that this goes on with, alone on the rank with its last token."""
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
        """Collective: all steps. The last thing that ranks do together is to raise what failed on one of them."""
        clock, laps = self.model.clock, self.model.laps
        self.step_s = np.zeros(self.tokens.ids.shape[1])
        with clock.running():
            laps.start()
            for step in range(len(self.step_s)):
                if self.tokens.over:
                    break
                start_s = clock.now()
                if not self._step(step):
                    break
                self.step_s[step] = clock.now() - start_s
                self.model.meanwhile()
            if self.failure is None:
                self._close()
        self.model.exchange.settle()
        raise_together(self.model.comm, self.failure)

    def _step(self, step: int) -> bool:
        """One token of every sequence that has not ended; False if that failed on this rank."""
        n_before = self.model.exchange.n_started
        try:
            if self.failure is not None:
                raise self.failure  # of the callback
            with alone(self.model.comm, "decoding"):  # others may wait for the last of many steps
                self._advance(step)
            self.tokens.tell(step)
        except Exception as exc:
            self.failure = exc
            if step:
                self.mode.abandon(n_before)
            self.tokens.abandon()
            return False
        return True

    def _advance(self, step: int) -> None:
        """The sequences computed here by one token, and those sampled here by one id."""
        mode, tokens = self.mode, self.tokens
        sequences = mode.computed[~tokens.ended[mode.computed]]
        if not len(sequences):
            return
        if step:
            before = tokens.ids[sequences, step - 1].astype(np.int64)
            self.rows = mode.step(before, sequences, self.first[sequences] + step - 1, step - 1)
        if len(mode.sampled):
            logits = mode.logits(self.rows)
            tokens.put(step, sequences, self._sampled(logits, sequences, step))
            self.model.laps.mark("head")

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

    def report(self) -> dict[str, Any]:
        """Collective: that of the prefill, and under "generation" what the steps took."""
        model, comm, config = self.model, self.model.comm, self.model.config
        report = model.describe(self.layout, *self._prefilled)
        latency, counted = collect(comm, model.laps.seconds, model.exchange.counted())
        first_s = np.array([sum(self._prefilled[0].values()) + self.step_s[:1].sum()])
        comm.Allreduce(MPI.IN_PLACE, first_s, op=MPI.MAX)
        comm.Allreduce(MPI.IN_PLACE, self.step_s, op=MPI.MAX)
        cached = np.zeros(comm.Get_size(), np.int64)
        comm.Allgather(np.array([self.mode.cache.n_bytes], np.int64), cached)
        n_new = (self.tokens.ids >= 0).sum(axis=1)
        later_s = self.step_s[1 : int(n_new.max(initial=0))]
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
            "latency_s": latency,
            "exchange_wait_s": latency["exchange_wait"],
            "decode_bytes": counted[:, 0].astype(int).tolist(),
            "id_bytes": told.tolist(),
            "cache_bytes": cached.tolist(),
            "full_cache_bytes": int((self.layout.lengths + self.room - 1).sum()) * row_bytes,
        }
        return report
