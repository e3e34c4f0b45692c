"""States over blocks without codes: nothing is learned of a token there, and its state need not be made.

Predictions are linear. So the state of the last block with codes gives what the next one expects by one map in place of
two, and the far keys and values in between by one matrix.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.predictor import Predictor

#: inputs beside a state up to which one matrix to keys and values is less work than a state and its projection
_MOST_INPUTS = 1


def leaps(config: CodecConfig, whole: bool) -> bool:
    """Whether states are made in blocks with codes only. whole: all maps are whole matrices; those of low rank would
    become whole ones."""
    return config.predicts and whole and config.inputs <= _MOST_INPUTS


def leaps_of(codec: Codec) -> bool:
    """`leaps` of this codec."""
    return leaps(codec.config, all(len(one.predictor.factors) == 1 for one in codec.blocks if one.predictor))


def composed(first: Predictor, then: Predictor) -> Predictor:
    """Of two whole maps, the one that takes a token's state over the block of `first` to that of `then`.

    With A = [k; 0] + F, (1 + n) D x D, for each of them: [A_1 | inputs] A_2 - [k_1 k_2; 0], and b_1 A_2 + b_2.
    """
    width, keep = first.width, first.keep * then.keep
    one, two = matrix(first), matrix(then)
    both = one @ two[:width]
    both[width:] += two[width:]
    both[:width] -= keep * np.eye(width)
    return Predictor(
        (both.astype(np.float32),), (first.bias @ two[:width] + then.bias).astype(np.float32), float(np.float32(keep))
    )


def moved_on(predictor: Predictor, mean: np.ndarray) -> Predictor:
    """With what a block without codes adds to every state, (D,)."""
    return replace(predictor, bias=predictor.bias + mean)


def matrix(predictor: Predictor) -> np.ndarray:
    """The whole map, ((1 + n) D, D) float64, with what it keeps of a state."""
    change = predictor.factors[0].astype(np.float64)
    for factor in predictor.factors[1:]:
        change = change @ factor
    return change + predictor.keep * np.eye(*change.shape)
