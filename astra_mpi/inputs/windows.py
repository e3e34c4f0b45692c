"""Perplexity of a text: sliding windows, each token scored once, with as much context as the stride leaves.

A text's first token is not predicted, nor, where the stride is the window, is the first one of any window.
"""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.decks.deck import Deck
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.kinds import is_running_text
from astra_mpi.inputs.sources import TokenSource
from astra_mpi.inputs.text import tokenizer_of
from astra_mpi.ranks.broadcast import broadcast_integers

if TYPE_CHECKING:
    from mpi4py import MPI


class WindowSource(TokenSource):
    """Windows of up to `window` tokens that begin `stride` tokens after one another; the last one ends the text."""

    def __init__(self, ids: np.ndarray, window: int, stride: int, digest: str) -> None:
        starts = np.arange(0, max(len(ids) - window, 0) + stride, stride)
        ends = np.minimum(starts + window, len(ids))
        rows = [ids[a:b] for a, b in zip(starts, ends, strict=True)]
        super().__init__(rows, [np.ones(len(row), bool) for row in rows], None, digest)
        #: (n_items,) tokens of a window that an earlier one has scored
        self.n_context = np.concatenate([[0], ends[:-1]]) - starts

    def part(self, items: range) -> WindowSource:
        """These windows only."""
        some = copy.copy(self)
        chosen = slice(items.start, items.stop, items.step)
        some.ids, some.keep, some.n_context = self.ids[chosen], self.keep[chosen], self.n_context[chosen]
        some.n_items = len(items)
        return some


def open_windows(deck: Deck, model: Any) -> WindowSource:
    """The windows of [input] as [task] says. InputError names the key and the cure."""
    section, limit = deck.input, model.config.max_positions
    require(
        is_running_text(section.kind, section.path),
        f"{section.path}: perplexity is of one text; give input.kind = 'text' and a .txt file",
    )
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess)
    window = min(limit, section.max_tokens or (model.preprocess or {}).get("max_tokens", limit))
    stride = deck.task.stride or max(1, window // 2)
    require(
        section.max_tokens is None or section.max_tokens <= limit,
        f"input.max_tokens = {section.max_tokens} is more than this model's {limit} positions; lower it",
    )
    require(stride <= window, f"task.stride = {stride} leaves out tokens between windows of {window}; lower it")
    text = read_text(section.path)
    (ids,) = tokenizer.encode([text], max(len(text.encode()) + 2, 1 << 16), lambda _: str(section.path))
    require(len(ids) > 1, f"{section.path} has fewer than two tokens, so that nothing is predicted")
    return WindowSource(ids, window, stride, hashlib.sha256(section.path.read_bytes()).hexdigest())


def window_scores(
    model: Any, comm: MPI.Comm, inputs: np.ndarray, mask: np.ndarray | None, n_context: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Collective: `Model.nll` of windows (B, T), n_context (B,) being rank 0's -> outputs on every rank."""
    scores: np.ndarray = model.nll(inputs, mask, broadcast_integers(comm, n_context, len(inputs)))
    return {"nll": scores[:, 0], "scored": scores[:, 1].astype(np.int64)}
