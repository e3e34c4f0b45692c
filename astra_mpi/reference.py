"""The serial oracle: what P ranks should compute, in one process, in float64, one sequence at a time.

Written for reading and independently of the engine: the ranks are masks over one set of rows. The rows are P replicas
of the class token (families that have one), then the T content tokens. A query sees the exact keys of its own rank's
rows and the keys made from codes of every other rank's content tokens (arXiv 2505.19342, Eq. 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Weights = Mapping[str, NDArray[Any]]
Array = NDArray[Any]


@dataclass(frozen=True)
class OracleResult:
    """One sequence's answer. `n_class` is 1 for families or tasks with a class token, else 0."""

    output: Array  # (n_classes,) logits, or (D,) class row or pooled embedding
    hidden: Array  # (n_class + T, D) after the last block (and the final norm, if any), replicas averaged before it
    codes: list[Array]  # per block (T, C), the codes used; empty without a codec
    flips: int  # given codes that are not the oracle's own choice
    worst_gap: float  # largest excess of a given code's squared distance over the best one's, see `_Quantiser._row`


def oracle(
    config: Any,
    weights: Weights,
    tokens: ArrayLike,
    owner: ArrayLike,
    size: int,
    *,
    codec: Any = None,
    codes: Sequence[ArrayLike] | None = None,
    positions: ArrayLike | None = None,
) -> OracleResult:
    """Forward pass of one sequence as `size` ranks would compute it.

    config, weights: a model's, by the canonical names; codec: its codebooks, or None for the exact answer, which is
    that of one rank and for which `owner` and `size` do not matter.
    tokens: ViT: image (channels, height, width); BERT: ids (n_class + T,), placed at `positions` (default 0, 1, ..).
    owner: (T,) the rank, below `size`, that holds each content token; the class token is not counted.
    codes: per block (T, C), to be used instead of the oracle's own and checked against them.
    Raises ValueError if `owner` does not fit `tokens` or `size`.
    """
    owner = np.asarray(owner, np.int64)
    if codec is None:
        owner, size = np.zeros_like(owner), 1
    embedded = _embed(config, weights, tokens, positions)
    n_class = int(config.family == "vit" or config.pooling in ("cls", "pooler"))
    if len(owner) != len(embedded) - n_class or not np.isin(owner, np.arange(size)).all():
        raise ValueError(f"owner must name one of {size} ranks for each of {len(embedded) - n_class} content tokens")
    n_replicas = n_class * size
    x = np.concatenate([np.repeat(embedded[:n_class], size, axis=0), embedded[n_class:]])  # (n_replicas + T, D)
    rank = np.concatenate([np.arange(n_replicas), owner])
    near = rank[:, None] == rank[None, :]  # (rows, rows): same rank, exact keys
    far = rank[:, None] != owner[None, :]  # (rows, T): other ranks' content tokens, keys from codes
    quantise = _Quantiser(codec, codes)
    for i in range(config.n_layers):
        x = _block(config, weights, i, x, near, far, quantise)
    averaged = x[:n_replicas].reshape(n_class, size, x.shape[1]).mean(axis=1)  # (n_class, D)
    hidden = np.concatenate([averaged, x[n_replicas:]])
    if config.family == "vit":
        hidden = _norm(hidden, weights, "norm", config.norm_eps)
    return OracleResult(_head(config, weights, hidden), hidden, quantise.codes, quantise.flips, quantise.worst_gap)


def _embed(config: Any, weights: Weights, tokens: ArrayLike, positions: ArrayLike | None) -> Array:
    """(n_class + T, D) in float64."""
    w = {name: np.asarray(array, np.float64) for name, array in weights.items() if name.startswith("embed.")}
    if config.family == "vit":
        image, p = np.asarray(tokens, np.float64), config.patch_size
        n_channels, height, width = image.shape
        cells = image.reshape(n_channels, height // p, p, width // p, p).transpose(1, 3, 0, 2, 4)
        patches = cells.reshape(-1, n_channels * p * p)  # (T, channels * p * p), rows of patches from the top
        content = _linear(patches, w, "embed.patch")
        return np.concatenate([w["embed.class"][None], content]) + w["embed.position"]
    ids = np.asarray(tokens)
    places = np.arange(len(ids)) if positions is None else np.asarray(positions)
    x = w["embed.word"][ids] + w["embed.position"][places] + w["embed.type"][0]
    return _norm(x, w, "embed.norm", config.norm_eps)


def _head(config: Any, weights: Weights, hidden: Array) -> Array:
    if config.family == "vit":
        return _linear(hidden[0], weights, "head") if config.n_classes > 0 else hidden[0]
    if config.pooling == "mean":
        output = hidden.mean(axis=0)
    elif config.pooling == "cls":
        output = hidden[0]
    else:
        output = np.tanh(_linear(hidden[0], weights, "pooler"))
    return output / np.linalg.norm(output) if config.normalize else output


def _block(config: Any, weights: Weights, i: int, x: Array, near: Array, far: Array, quantise: _Quantiser) -> Array:
    """Pre-norm (ViT): x + f(norm(x)); post-norm (BERT): norm(x + f(x)). x: (rows, D)."""
    pre_norm = config.family == "vit"
    name = f"blocks.{i}."

    def norm(x: Array, which: str) -> Array:
        return _norm(x, weights, name + which, config.norm_eps)

    def linear(x: Array, which: str) -> Array:
        return _linear(x, weights, name + which)

    normed = norm(x, "norm1") if pre_norm else x
    q, k, v = linear(normed, "q"), linear(normed, "k"), linear(normed, "v")
    content = slice(len(x) - far.shape[1], None)  # class tokens are never coded
    site = quantise.site
    if site == "kv":
        k_far, v_far = quantise(i, k[content], v[content])
    elif site is None:
        k_far, v_far = k[content], v[content]  # one rank: `far` hides them all
    else:
        (seen,) = quantise(i, x[content] if site == "hidden" else normed[content])
        seen = norm(seen, "norm1") if pre_norm and site == "hidden" else seen
        k_far, v_far = linear(seen, "k"), linear(seen, "v")
    keys, values = np.concatenate([k, k_far]), np.concatenate([v, v_far])
    x = x + linear(_attention(q, keys, values, np.concatenate([near, far], axis=1), config.n_heads), "o")
    x = x if pre_norm else norm(x, "norm1")
    inner = _activate(linear(norm(x, "norm2") if pre_norm else x, "fc1"), config.activation)
    x = x + linear(inner, "fc2")
    return x if pre_norm else norm(x, "norm2")


def _attention(q: Array, keys: Array, values: Array, visible: Array, n_heads: int) -> Array:
    """softmax(q k^T / sqrt(d) + mask) v, head by head; q (rows, D), keys and values (m, D), visible (rows, m)."""
    d_head = q.shape[1] // n_heads
    out = np.empty_like(q)
    for h in range(n_heads):
        head = slice(h * d_head, (h + 1) * d_head)
        scores = np.where(visible, q[:, head] @ keys[:, head].T / math.sqrt(d_head), -np.inf)  # (rows, m)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = shares @ values[:, head] / shares.sum(axis=1, keepdims=True)
    return out


def _linear(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[name + ".weight"].astype(np.float64) + weights.get(name + ".bias", np.zeros(()))


def _norm(x: Array, weights: Weights, name: str, eps: float) -> Array:
    """LayerNorm over the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weights[name + ".weight"] + weights[name + ".bias"]


def _activate(x: Array, name: str) -> Array:
    if name == "gelu":
        return x * 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    if name == "silu":
        return x / (1 + np.exp(-x))
    return np.maximum(x, 0)


class _Quantiser:
    """Quantises block after block, with the oracle's codes or with given ones, and keeps the score of those."""

    def __init__(self, codec: Any, given: Sequence[ArrayLike] | None) -> None:
        self.codec, self.given = codec, given
        self.site = None if codec is None else codec.config.site
        self.codes: list[Array] = []
        self.flips = 0
        self.worst_gap = 0.0

    def __call__(self, i: int, *parts: Array) -> list[Array]:
        """What other ranks see of each part (T, width) of block i: one codebook per part, the codes side by side."""
        books = self.codec.blocks[i].codebooks
        n_codes = [len(book.entries) for book in books]
        used = np.empty((len(parts[0]), sum(n_codes)), np.int64)  # (T, C)
        if self.given is not None:
            used[:] = self.given[i]
        seen = []
        for book, part, codes in zip(books, parts, np.split(used, np.cumsum(n_codes)[:-1], axis=1), strict=True):
            basis = None if book.basis is None else book.basis.astype(np.float64)
            entries = book.entries.astype(np.float64)
            searched = entries if basis is None else entries @ basis  # (C, K, W or d)
            rows = [self._row(book.kind, entries, searched, basis, row, codes[t]) for t, row in enumerate(part)]
            seen.append(np.reshape(rows, part.shape))
        self.codes.append(used)
        return seen

    def _row(self, kind: str, entries: Array, searched: Array, basis: Array | None, row: Array, codes: Array) -> Array:
        """Quantise one row (D,) with entries (C, K, W); fills or checks `codes` (C,), returns the approximation (D,).

        With a basis (W, d), distances are those of the projections, `searched` (C, K, d) of the entries.
        The gap of a given code is (its distance - the best distance) / (its distance + ||row||^2), between 0 and 1: a
        float32 row and search err in proportion to the norm of the whole row. A residual stage is judged on what the
        codes used before it have left.
        """
        n_codes, _, width = entries.shape
        whole = np.zeros(n_codes * width if kind == "grouped" else width)
        whole[: len(row)] = row
        approximation = np.zeros_like(whole)
        for c in range(n_codes):
            span = slice(c * width, (c + 1) * width) if kind == "grouped" else slice(None)
            target = whole[span] - approximation[span]
            sought = target if basis is None else target @ basis
            distances = ((searched[c] - sought) ** 2).sum(axis=1)  # (K,)
            best = int(distances.argmin())
            if self.given is None:
                codes[c] = best
            elif codes[c] != best:
                excess = distances[codes[c]] - distances[best]
                self.flips += 1
                if excess > 0:
                    self.worst_gap = max(self.worst_gap, float(excess / (distances[codes[c]] + row @ row)))
            approximation[span] += entries[c, codes[c]]
        return approximation[: len(row)]
