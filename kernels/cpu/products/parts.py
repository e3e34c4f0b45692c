"""What compiled functions of a layer share: where its weights and rows lie, and what a thread works in."""

from typing import NamedTuple

import numpy as np

SET, ADD, BFLOAT16 = 0, 1, 2


class Layer(NamedTuple):
    """Addresses and sizes of a layer (k, n), gated or not."""

    strips: int  # of `Strips.words`
    scale: int  # (n_pad,) float32
    bias: int  # (n,) float32
    gate: int  # strips of the gate (k, n); 0: none
    gate_scale: int
    gate_bias: int
    activation: int  # of the layer, or of its gate; -1: none
    k: int
    n: int
    n_words: int  # of an output


class Rows(NamedTuple):
    """Rows of float32 somewhere: how many, and where they lie."""

    at: int
    stride: int  # bytes
    n: int


class Room(NamedTuple):
    """What one thread works in. The type of `panel` is that of the products."""

    panel: np.ndarray  # (r, k_pad) uint16 bfloat16, or int8; see `rows`
    sums: np.ndarray  # (r, columns at a time) float32
    gate_sums: np.ndarray
    counts: np.ndarray  # int32, of a group of int8: (r, columns at a time), or (32, 32) by tiles
    factors: np.ndarray  # (groups, r) float32 of int8 rows
    offsets: np.ndarray  # (groups, r) int32
    line: np.ndarray  # (columns at a time,) float32
    gate_line: np.ndarray
    zeros: np.ndarray  # (columns at a time,)
