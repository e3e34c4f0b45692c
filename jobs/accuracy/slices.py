"""Perplexity of a text as ranks would have it, in one process: slices see far tokens as codes leave them.

What `calibrate/emulated.py` computes equals what ranks compute (tests/calibrate/test_allotting.py), without their
waiting for each other on few cores.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.calibrate.emulated import LOGIT_ROWS, AsCodes, Emulated
from astra_mpi.codec.codec import Codec
from astra_mpi.config import require
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.codecfile import read_codebooks
from astra_mpi.files.modelfile import read_model
from astra_mpi.inputs.text import tokenizer_of
from astra_mpi.strategies.coded.graded import near_ends


class Slices:
    """A text in windows, passed through a decoder in slices."""

    def __init__(
        self,
        model: Path,
        text: Path,
        window: int,
        n_new: int = 0,
        late: bool = False,
        awaited: tuple[int, ...] | None = None,
        loss: float = 0,
        seed: int = 0,
    ) -> None:
        """n_new: last tokens of each window that are decoded after it, and alone are counted; 0: all are. late: as
        `astra:late`, with predicted codes; awaited: blocks that wait for their own, None: those that the codebooks
        name. loss: share of the messages of predicted codes that is lost, drawn by seed as ranks draw it."""
        self.n_new, self.late, self.awaited = n_new, late, awaited
        self.loss, self.seed = loss, seed
        self.file = read_model(model)
        self.model = Model(self.file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
        tokenizer = tokenizer_of(self.file.tokenizer, self.file.config.vocab_size)
        ids = np.array(tokenizer.encode_plain(text.read_text(encoding="utf-8"), str(text)))
        self.windows = [part[None] for part in np.split(ids, range(window, len(ids), window)) if len(part) > 1]

    def summary(self, codebooks: Path | None, ranks: int) -> dict[str, Any]:
        """Of so many ranks with these codebooks, or None: exact. As a summary of `run` has it."""
        codec = None if codebooks is None else read_codebooks(codebooks, self.file.digest)
        if codec is not None and self.awaited is not None:
            codec = Codec(replace(codec.config, awaited=self.awaited), codec.blocks)
        losses = [self._losses(ids, codec, ranks) for ids in self.windows]
        n_layers = len(self.model.blocks)
        bits = 0.0 if codec is None else codec.config.mean_bits(n_layers, end=self._end(codec))
        metrics = {"perplexity": math.exp(np.concatenate(losses).mean()), "loss_at": by_position(losses)}
        return {"metrics": metrics, "bits_per_token_per_block": bits}

    def _end(self, codec: Codec) -> int:
        """The blocks before this one may send codes; the last one, if it is late, for new tokens alone."""
        n_layers = len(codec.blocks)
        return n_layers - (self.late and not self.n_new and codec.config.is_late(n_layers - 1))

    def _losses(self, ids: np.ndarray, codec: Any, ranks: int) -> np.ndarray:
        """-log p of the tokens of a window (1, T): (T - 1,), all after the first, or (n_new,)."""
        site, sinks = ("normed", 0) if codec is None else (codec.config.site, codec.config.sinks)
        emulated = Emulated(self.model, ids, None, site, ranks, sinks, self.n_new)

        def exactly(i: int, x: np.ndarray) -> np.ndarray:
            return x

        see = exactly if codec is None else self._codes(emulated, codec)
        rows = emulated.passed(see, emulated.rows)[:-1]
        parts = []
        for a in range(0, len(rows), LOGIT_ROWS):
            logits = emulated.answer(rows[a : a + LOGIT_ROWS]).astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            wanted = ids[0, 1 + a : 1 + a + len(logits)]
            parts.append(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), wanted])
        return np.concatenate(parts)[-self.n_new :]

    def _codes(self, emulated: Emulated, codec: Any) -> AsCodes:
        counts = emulated.layouts[0].counts[0]
        near = near_ends(counts, codec.config.near, True) if codec.config.near else None
        require(codec.config.predicts or not self.loss, "--loss is of predicted codes; run others on ranks")
        lost = emulated.lost(self.loss, self.seed) if self.loss else None
        return AsCodes(codec.blocks, codec.config, emulated, near, self.late, lost)


def by_position(losses: list[np.ndarray]) -> dict[str, float]:
    """Mean of the losses (T,) of every window from each power of two up to the next, from 64 on."""
    ends = [0, *(1 << k for k in range(6, 24))]
    found = {}
    for a, b in pairwise(ends):
        some = np.concatenate([loss[a:b] for loss in losses])
        if len(some):
            found[str(a)] = float(some.mean())
    return found
