"""What `Model.generate` is asked for, checked."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from astra_mpi.config import require
from astra_mpi.decode.drafts import MOST_DRAFTS, Draft
from astra_mpi.decode.sampling import Sample, greedy
from astra_mpi.errors import InputError
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import DecoderConfig

OnTokens = Callable[[int, np.ndarray], None]
#: new ids (n,) of a sequence -> whether they end it; the same on all ranks
Ends = Callable[[np.ndarray], bool]

MODES = ("auto", "local", "merged")
#: how far tokens that came as codes are kept: as keys and values, or as the codes that they came as
FAR = ("keys", "codes")


@dataclass(frozen=True)
class Request:
    """How many tokens, how they are chosen, what ends a sequence, and which ranks work on it."""

    max_new_tokens: int
    sample: Sample = greedy
    stop: tuple[int, ...] = ()
    decode: str = "auto"
    on_tokens: OnTokens | None = None
    ends: Ends | None = None  # beside `stop`
    #: whether this rank wants no more, asked at every step while tokens are streamed; all ranks then end
    enough: Callable[[], bool] | None = None
    far: str = "keys"
    draft: Draft | None = None
    draft_tokens: int = MOST_DRAFTS  # of a sequence and pass, at most

    @property
    def most_drafts(self) -> int:
        """Of a sequence and pass."""
        return 0 if self.draft is None else min(self.draft_tokens, self.max_new_tokens - 1)

    def check(self, config: DecoderConfig) -> None:
        """InputError on what this model cannot do."""
        n = self.max_new_tokens
        require(isinstance(n, int | np.integer) and n >= 1, f"max_new_tokens = {n!r}: give an integer of 1 or more")
        require(self.decode in MODES, f"decode = '{self.decode}' is unknown; use one of {', '.join(MODES)}")
        n = self.draft_tokens
        known = isinstance(n, int | np.integer) and 1 <= n <= MOST_DRAFTS
        require(known, f"draft_tokens = {n!r}: give an integer from 1 to {MOST_DRAFTS}")
        require(self.far in FAR, f"far = '{self.far}' is unknown; use one of {', '.join(FAR)}")
        for token in self.stop:
            known = isinstance(token, int | np.integer) and 0 <= token < config.vocab_size
            require(known, f"stop token {token!r} is outside the vocabulary, 0..{config.vocab_size - 1}")

    @property
    def digest(self) -> list[int]:
        """What must be the same on all ranks, as numbers."""
        stop = hash(tuple(int(t) for t in self.stop))
        draft = 0 if self.draft is None else zlib.crc32(self.draft.name.encode()) + 1
        chosen = [MODES.index(self.decode), FAR.index(self.far), draft, int(self.draft_tokens)]
        return [int(self.max_new_tokens), *chosen, stop]

    def room(self, batch: Batch, config: DecoderConfig) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the first new tokens (B,), and how many each sequence may get (B,). InputError without room."""
        assert batch.positions is not None
        empty = np.flatnonzero(batch.lengths == 0)
        require(
            not empty.size, f"prompt {empty[0] if empty.size else 0} is empty; give at least one token to go on from"
        )
        first = batch.positions[np.cumsum(batch.lengths) - 1] + 1
        last = config.last_position(first, config.max_positions)  # (B,)
        full = np.flatnonzero(first >= last)
        if full.size:
            most = last[full[0]]
            raise InputError(
                f"prompt {full[0]} fills all {most} positions of the model: no room for a new token; shorten it"
            )
        return first, np.minimum(self.max_new_tokens, last - first)


def reasons(request: Request, room: np.ndarray, ids: np.ndarray) -> list[str]:
    """Why each sequence of ids (B, n) ended: "stop" token, the model's last "positions", the "length" asked for, or
    "interrupted"."""
    found = []
    for row, space in zip(ids, room, strict=True):
        given = row[row >= 0]
        if len(given) and (given[-1] in request.stop or (request.ends is not None and request.ends(given))):
            found.append("stop")
        elif len(given) < space:
            found.append("interrupted")
        else:
            found.append("positions" if space < request.max_new_tokens else "length")
    return found
