"""What an exchange gives a block: keys and values of other ranks' tokens."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class FarKeys(NamedTuple):
    """Keys and values of other ranks' tokens."""

    kv: np.ndarray  # (m, 2 d_kv)
    offsets: np.ndarray  # (B + 1,) where each sequence's begin
    bias: np.ndarray | None = None  # (m,) added to the scores
    tokens: np.ndarray | None = None  # (m,) where they lie among the gathered tokens; None: as the layout's `far_index`
    #: (m,) which row of `kv` each key is, for attention that reads rows of tables; None: its own
    rows: np.ndarray | None = None
    # with packed attention only:
    ends: np.ndarray | None = None  # (B,) where each sequence's end; None: where the next one's begin
