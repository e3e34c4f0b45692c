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
from astra_mpi.kernels.integers import integer_product, integers

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
    """Of two whole maps, the one that takes a token's state over the block of `first` to that of `then`; the same bits
    on all processors.

    s -> k_1 s + x F_1 + b_1 and then k_2 s + x F_2 + b_2, where S of F_2 multiplies states and I inputs, give k_1 k_2 s
    + x (F_1 S + k_2 F_1 + [k_1 S; I]) + b_1 S + k_2 b_1 + b_2. Products with S are exact sums of integers, as those of
    predictions are: BLAS has another order of sums on every kind of processor.
    """
    width, (change,) = first.width, first.factors
    of_states, of_inputs = np.split(then.factors[0], [width])
    rows = np.concatenate([change, first.bias[None]])
    product = integer_product([rows], integers(of_states), np.empty((len(rows), width), np.float32))
    both = product[:-1] + then.keep * change + np.concatenate([first.keep * of_states, of_inputs])
    bias = product[-1] + then.keep * first.bias + then.bias
    return Predictor((both,), bias, float(np.float32(first.keep * then.keep)))


def moved_on(predictor: Predictor, mean: np.ndarray) -> Predictor:
    """With what a block without codes adds to every state, (D,)."""
    return replace(predictor, bias=predictor.bias + mean)


def matrix(predictor: Predictor) -> np.ndarray:
    """The whole map, ((1 + n) D, D) float64, with what it keeps of a state."""
    change = predictor.factors[0].astype(np.float64)
    for factor in predictor.factors[1:]:
        change = change @ factor
    return change + predictor.keep * np.eye(*change.shape)
