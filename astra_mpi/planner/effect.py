"""How much another type of products changes what a model is used for, from its answers to a few inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder


class Effect(NamedTuple):
    """A measure of other answers (n, width) against float32's."""

    words: str  # what a type does to the answers, with room for how much
    bound: float  # the largest that is accepted
    of: Callable[[np.ndarray, np.ndarray], float]  # (float32's answers, the other's) -> the effect


def effect_of(config: Any) -> Effect:
    """Of logits the rise of the perplexity, of embeddings what becomes of their similarities, of scores the change."""
    if issubclass(FAMILIES[config.family], Decoder) or getattr(config, "n_classes", 0) > 1:
        return Effect("raises the perplexity by {}", 0.02, rise_of_perplexity)
    if getattr(config, "n_classes", 0) == 1:
        return Effect("changes the scores by {}", 0.02, change)
    return Effect("takes {} from the correlation of similarities", 0.003, lost_correlation)


def rise_of_perplexity(exact: np.ndarray, other: np.ndarray) -> float:
    """Expected where texts are as the model in float32 says: of the mean Kullback-Leibler divergence."""
    p, q = _log_softmax(exact), _log_softmax(other)
    return float(np.expm1((np.exp(p) * (p - q)).sum(axis=1).mean()))


def change(exact: np.ndarray, other: np.ndarray) -> float:
    """The root of the summed squared differences, over that of the answers."""
    return float(np.linalg.norm(other - exact) / (np.linalg.norm(exact) or 1.0))


def lost_correlation(exact: np.ndarray, other: np.ndarray) -> float:
    """1 - r of the cosines of all pairs of answers; of fewer than four answers, or where they are all alike, half the
    squared change, which is what the cosine of an answer with its other self loses."""
    pairs = np.triu_indices(len(exact), 1)
    a, b = _cosines(exact)[pairs], _cosines(other)[pairs]
    if len(exact) < 4 or min(np.ptp(a), np.ptp(b)) < 1e-6:
        return change(exact, other) ** 2 / 2
    return float(1 - np.corrcoef(a, b)[0, 1])


def _cosines(x: np.ndarray) -> np.ndarray:
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    cosines: np.ndarray = unit @ unit.T
    return cosines


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(axis=1, keepdims=True)
    logs: np.ndarray = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return logs
