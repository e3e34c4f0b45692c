"""What is minimised, and what validation measures. A rank's loss is its share: shares add up to the joint batch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mpi.models.decoder import Decoder
from astra_mpi.train.parallel import all_rows

if TYPE_CHECKING:
    from mpi4py import MPI

#: logits that are there at once
LOGITS = 1 << 24


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
    return (log_p.exp() * (log_p - log_q)).sum() / n_rows


class _ByRows(torch.autograd.Function):
    """`same_distribution` of the logits of rows (n, D), a few rows at a time, whose gradients are found at once."""

    @staticmethod
    def forward(
        ctx: Any, found: Tensor, exact: Tensor, logits: Callable[[Tensor], Tensor], n_rows: int, width: int
    ) -> Tensor:
        gradient, total = torch.empty_like(found, dtype=torch.float32), found.new_zeros((), dtype=torch.float64)
        step = max(1, LOGITS // width)
        for a in range(0, len(found), step):
            with torch.enable_grad():
                rows = found[a : a + step].detach().float().requires_grad_()
                loss = same_distribution(logits(rows), logits(exact[a : a + step].detach()), n_rows)
                (gradient[a : a + step],) = torch.autograd.grad(loss, rows)
            total += loss.detach()
        ctx.save_for_backward(gradient)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None, None, None


def same_distribution_by_rows(
    found: Tensor, exact: Tensor, logits: Callable[[Tensor], Tensor], n_rows: int, width: int
) -> Tensor:
    """`same_distribution` of logits(found) from logits(exact), both (n, width), which are never there as a whole.

    found, exact (n, D): rows after the last block. Nothing that `logits` reads has a gradient.
    """
    loss: Tensor = _ByRows.apply(found, exact, logits, n_rows, width)
    return loss


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
    n_sums = 2
    grows = True  # the better, the more

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        raise NotImplementedError

    def value(self, total: np.ndarray) -> float:
        return float(total[0] / max(total[1], 1))

    def others(self, total: np.ndarray) -> dict[str, float]:
        """Further figures, by name."""
        return {}


class Accuracy(Metric):
    name = "accuracy"

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        return [float((found.argmax(dim=1) == labels).sum()), len(labels)]


class Perplexity(Metric):
    """And `divergence`: nats per token from the exact model's distribution."""

    name = "perplexity"
    n_sums = 3
    grows = False

    def sums(self, found: Tensor, exact: Tensor | None, labels: Tensor, keep: Tensor) -> list[float]:
        apart = 0.0
        if exact is not None and exact is not found:
            apart = float(same_distribution(found[:, :-1][keep[:, 1:]], exact[:, :-1][keep[:, 1:]], 1))
        return [float(next_token(found, labels, keep, 1)), float(keep[:, 1:].sum()), apart]

    def others(self, total: np.ndarray) -> dict[str, float]:
        return {"divergence": float(total[2] / max(total[1], 1))}

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
