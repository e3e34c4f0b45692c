"""What is minimised, and what validation measures. A rank's loss is its share: shares add up to the joint batch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from astra_mpi.models.decoder import Decoder
from astra_mpi.train.parallel import all_rows

if TYPE_CHECKING:
    from mpi4py import MPI


def classification(logits: Tensor, labels: Tensor, smoothing: float, n_items: int) -> Tensor:
    """Cross entropy of logits (B, classes)."""
    return F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=smoothing) / n_items


def next_token(logits: Tensor, ids: Tensor, keep: Tensor, n_targets: int, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of logits (B, S, V) and the tokens after them; keep (B, S) marks tokens, which come first."""
    wanted = keep[:, 1:]
    shifted = logits[:, :-1][wanted].float()
    return F.cross_entropy(shifted, ids[:, 1:][wanted], reduction="sum", label_smoothing=smoothing) / n_targets


def same_distribution(logits: Tensor, exact: Tensor, n_rows: int) -> Tensor:
    """KL divergence of logits (.., V) from the exact model's."""
    log_p, log_q = F.log_softmax(exact.float(), dim=-1), F.log_softmax(logits.float(), dim=-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True) / n_rows


def same_embedding(comm: MPI.Comm, found: Tensor, exact: Tensor, similarity: float, n_items: int) -> Tensor:
    """Collective: 1 - cosine to the exact embeddings (B, D), plus `similarity` times the mean squared difference of the
    joint batch's matrices of cosines.

    The matrix is symmetric: a row's gradient is twice that of its products with rows held fixed.
    """
    found, exact = F.normalize(found.float(), dim=-1), F.normalize(exact.float(), dim=-1)
    loss = (1 - (found * exact).sum(dim=-1)).sum() / n_items
    if not similarity:
        return loss
    (all_found, _), (all_exact, _) = all_rows(comm, found), all_rows(comm, exact)
    off = (found @ all_found.T - exact @ all_exact.T).square().sum() / n_items**2
    return loss + similarity * (2 * off - off.detach())


class Metric:
    """Sums over validation items, and the figure made of them over all ranks."""

    name: str

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        raise NotImplementedError

    def value(self, total: np.ndarray) -> float:
        return float(total[0] / max(total[1], 1))


class Accuracy(Metric):
    name = "accuracy"

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        return [float((found.argmax(dim=1) == labels).sum()), len(labels)]


class Perplexity(Metric):
    name = "perplexity"

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        return [float(next_token(found, labels, keep, 1)), float(keep[:, 1:].sum())]

    def value(self, total: np.ndarray) -> float:
        return float(np.exp(min(super().value(total), 700)))


class Cosine(Metric):
    """To the exact answer."""

    name = "cosine"

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        assert exact is not None
        return [float(F.cosine_similarity(found.float(), exact.float(), dim=-1).sum()), len(found)]


def metric_for(family: type, labelled: bool) -> Metric:
    if issubclass(family, Decoder):
        return Perplexity()
    return Accuracy() if labelled else Cosine()


def token_rows(logits: Tensor, keep: Tensor) -> Tensor:
    """(n, V): a decoder's logits at its tokens; (B, classes) as they are."""
    return logits[keep] if logits.ndim == 3 else logits
