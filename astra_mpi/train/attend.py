"""The twin's attention: over all keys under a mask, or slice by slice over those that rows there see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from astra_mpi.train.cuts import View

#: keys up to which bfloat16 attention on the CPU is quicker by plain products: 0.25 to 0.7 of the fused one's time
SHORT = 256


class Scores(NamedTuple):
    """How a model makes scores of queries and keys."""

    scale: float
    cap: float  # they are cap * tanh(scores / cap), unless it is 0
    narrow: bool  # whether products are in bfloat16 on a CPU

    @classmethod
    def of(cls, config: Any, narrow: bool) -> Scores:
        return cls(config.score_scale or config.d_head**-0.5, config.score_cap, narrow)


def attend(heads: Sequence[Tensor], visible: Tensor, scores: Scores, whole: bool = False) -> Tensor:
    """softmax(cap(scale q k^T)) v over visible keys (.., R, m): q (B, H, R, d), k and v (B, Hkv, m, d).

    whole: `visible` is what causal attention sees of all keys.
    """
    q, k, v = heads
    if scores.cap or (scores.narrow and k.shape[2] <= SHORT):
        return _plainly(q, k, v, visible, scores)
    mask, shared = None if whole else visible, q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=whole, enable_gqa=shared, scale=scores.scale
    )


def attend_by_slices(heads: Sequence[Tensor], view: View, scores: Scores) -> Tensor:
    """The same of a decoder, without keys that no row of a slice sees: those of later slices, exact or as sent.

    k and v have a key for every row, then, where anything is sent, one for every row as it is sent.
    """
    q, rows, parts = heads[0], heads[0].shape[2], []
    for a, b in view.slices:
        first = min(a, view.sinks)
        pieces = slice(0, first), slice(rows + first, rows + a), slice(a, b)
        kv = [torch.cat([x[:, :, piece] for piece in pieces], dim=2) for x in heads[1:]]
        earlier = torch.ones(b - a, b, dtype=torch.bool, device=q.device).tril(a)
        parts.append(attend([q[:, :, a:b], *kv], earlier, scores, whole=not a))
    return torch.cat(parts, dim=2)


def _plainly(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, how: Scores) -> Tensor:
    """As PyTorch's fused attention, from products."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) if q.shape[1] != x.shape[1] else x for x in (k, v))
    bias = torch.zeros(visible.shape, device=q.device).masked_fill(~visible, -torch.inf)
    scores = (q * how.scale) @ k.mT
    scores = how.cap * torch.tanh(scores / how.cap) if how.cap else scores
    return (scores.float() + bias).softmax(dim=-1).to(v.dtype) @ v


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs (a, a + d/2) of x (.., rows, d) turned by turns (rows, d)."""
    cos, sin = turns.chunk(2, dim=-1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
