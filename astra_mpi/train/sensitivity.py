"""What errors of far tokens change in a model's own answer, by gradients through the twin.

Far rows x^ instead of x change the distribution of answers by a divergence of about (x^ - x)^T G (x^ - x) / 2, where
G = E[g g^T] over tokens (Fisher's information), with g the gradient of a drawn answer's logarithm. Of embeddings, whose
answer is a vector, it is that of their squared distance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from astra_mpi.calibrate.tokens import Batches
from astra_mpi.codec.metric import Weighings
from astra_mpi.config import require
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.train.cuts import coded_places, make_view
from astra_mpi.train.start import has_bfloat16
from astra_mpi.train.twin import Twin

#: slices that sequences are cut into, tokens that gradients are taken of, and how many at a time
SLICES, SAMPLES, TOKENS = 4, 4096, 512


def weighings(
    file: ModelFile,
    batches: Batches,
    site: str,
    sinks: int,
    seed: int,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> Weighings:
    """G (W, W) float64 of every block and every vector of W numbers that is sent of a token at `site`.

    sinks: first tokens that every rank has exactly. `progress(done, total)` counts tokens. InputError where there are
    no tokens that are sent, or the twin cannot compute the model.
    """
    twin, drawn = Twin(file.config, file.weights), torch.Generator().manual_seed(seed)
    sums: list[list[Tensor]] = []
    n_tokens = 0
    for inputs, mask in batches:
        for first in range(0, len(inputs), _at_once(inputs)):
            chosen = slice(first, first + _at_once(inputs))
            keep = None if mask is None else np.asarray(mask[chosen], bool)
            n_tokens += _add(twin, inputs[chosen], keep, site, sinks, drawn, sums)
            progress(min(n_tokens, SAMPLES), SAMPLES)
            if n_tokens >= SAMPLES:
                break
        if n_tokens >= SAMPLES:
            break
    require(n_tokens > 0, "no token of the data is sent to another rank; give more data, or longer items")
    return [[total.double().numpy() / n_tokens for total in parts] for parts in sums]


class _Kept:
    """A `Send` by which far ranks see tokens as they are; it keeps them, and so their gradients."""

    carried = (torch.zeros(0), torch.zeros(()))

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, ...]] = []

    def __call__(self, i: int, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.seen.append(tuple(part.detach().float().requires_grad_() for part in parts))
        return self.seen[-1]


def _at_once(inputs: np.ndarray) -> int:
    """Items whose gradients are taken together."""
    return 8 if inputs.ndim == 4 else max(1, TOKENS // max(1, inputs.shape[1]))


def _add(
    twin: Twin,
    inputs: np.ndarray,
    keep: np.ndarray | None,
    site: str,
    sinks: int,
    drawn: torch.Generator,
    sums: list[list[Tensor]],
) -> int:
    """Adds the moments of some items' gradients to `sums`, and returns of how many tokens."""
    given = torch.from_numpy(np.ascontiguousarray(inputs))
    if keep is None:
        keep = np.ones((len(inputs), twin.embed(given[:1]).shape[1]), bool)
    n_class = twin.config.n_class
    view = make_view(keep, n_class, SLICES, None, causal=twin.causal, sends=True, sinks=sinks)
    coded = torch.from_numpy(coded_places(keep, n_class, sinks))
    kept = _Kept()
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16("cpu")):
        answer = twin(given, view, kept, site)
    _drawn_loss(twin, answer.float(), torch.from_numpy(keep), drawn).backward()
    for i, parts in enumerate(kept.seen):
        gradients = [torch.zeros_like(part)[coded] if part.grad is None else part.grad[coded] for part in parts]
        moments = [g.T @ g for g in gradients]
        if len(sums) == i:
            sums.append(moments)
        else:
            sums[i] = [total + moment for total, moment in zip(sums[i], moments, strict=True)]
    return int(coded.sum())


def _drawn_loss(twin: Twin, answer: Tensor, keep: Tensor, drawn: torch.Generator) -> Tensor:
    """The sum of -log p of an answer drawn from the model itself, or of embeddings (B, D) times normal numbers."""
    if isinstance(twin.config, BertConfig) and not twin.config.n_classes:
        return (answer * torch.randn(answer.shape, generator=drawn)).sum()
    logits = answer[keep] if answer.ndim == 3 else answer
    logs = logits.log_softmax(dim=-1)
    wanted = torch.multinomial(logs.detach().exp(), 1, generator=drawn)
    return -logs.gather(-1, wanted).sum()
