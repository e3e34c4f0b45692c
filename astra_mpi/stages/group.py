"""Prompts that go through the stages together while new tokens are made."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.decode.request import Request
from astra_mpi.decode.steps import Local
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch


class Group:
    """Some prompts; their keys and values in this stage, and how far they are."""

    def __init__(self, pipeline: Any, batch: Batch, first: int, request: Request) -> None:
        """first: number of its first prompt in the whole batch."""
        self.batch, self.first = batch, first
        self.positions, self.room = request.room(batch, pipeline.config)
        self.layout: Layout | None = None
        self.mode: Local | None = None
        self.new = np.full((len(self.room), request.max_new_tokens), -1, np.int32)
        self.ended = np.zeros(len(self.room), bool)
        self.over = False
        self.alive = np.empty(0, np.int64)  # sequences whose next tokens are on their way
        self.rows = np.empty((0, pipeline.config.d_model), np.float32)  # of the stage before this one

    def open(self, pipeline: Any) -> None:
        """Room for the keys and values of this stage."""
        assert self.layout is not None
        self.mode = Local(pipeline.model, self.layout, self.room, self.positions)
        self.mode.enter = self._entered if pipeline.stage else None
        self.alive = self.mode.computed
        self.over = not len(self.alive)

    def _entered(self, _: Batch) -> np.ndarray:
        return self.rows

    def step(self, ids: np.ndarray, sequences: np.ndarray, step: int) -> np.ndarray:
        """Rows (n, D) after this stage's blocks; those before them are `rows`, but in the first stage."""
        assert self.mode is not None
        return self.mode.step(ids, sequences, np.full(len(sequences), step - 1))
