"""The serial oracle: what P ranks should compute, in one process, in float64, one sequence at a time.

Written for reading and independently of the engine: the ranks are masks over one set of rows. The rows are P replicas
of the class token (families that have one), then the T content tokens. A query sees the exact keys of its own rank's
rows and the keys made from what it is sent of every other rank's content tokens (arXiv 2505.19342, Eq. 1):
`far.py`. Exact strategies are one rank; the decoupled architecture has blocks of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from astra_mpi.oracle.carried import Carried
from astra_mpi.oracle.far import Far, Means, Quantised, Rounded
from astra_mpi.oracle.heads import ENCODERS, answer
from astra_mpi.oracle.layers import Array, Weights, activated, attention, capped, linear, normalised
from astra_mpi.oracle.narrow import EXACT, Rounding
from astra_mpi.oracle.positions import is_rotary, relative_bias, turned, within
from astra_mpi.oracle.predicted import Predicted

#: families that normalise after each residual sum
POST_NORM = ("bert",)
#: families that normalise each head by its mean too, and all heads of a token together
CENTRED_HEADS, ALL_HEADS = ("stablelm",), ("olmo2",)


@dataclass(frozen=True)
class OracleResult:
    """One sequence's answer. `n_class` counts class tokens and registers."""

    output: Array  # (n_classes,) logits, (D,) class row or pooled embedding; decoders: (V,) logits after the last token
    hidden: Array  # (n_class + T, D) after the last block (and the final norm, if any), replicas averaged before it;
    # decoders: (T, V) logits
    codes: list[Array]  # per coded block (T, C), the codes used; empty without a codec
    flips: int  # given codes, or rounded numbers, that are not the oracle's own choice
    worst_gap: float  # largest excess of a given code's or number's error over the best one's, see `far.py`
    sites: list[Array]  # per block that is coded or rounded (T, width), what was; and (T,) the excess of each token
    gaps: list[Array]


def oracle(
    config: Any,
    weights: Weights,
    tokens: ArrayLike,
    owner: ArrayLike,
    size: int,
    *,
    codec: Any = None,
    codes: Sequence[ArrayLike] | None = None,
    first_coded: int = 0,
    missing: Sequence[Array] | None = None,
    stand_in: Sequence[Array] | None = None,
    wire: str = "float32",
    gather: str = "x",
    seen: Sequence[ArrayLike] | None = None,
    ratio: int = 0,
    parts: Sequence[Sequence[Weights] | None] | None = None,
    positions: ArrayLike | None = None,
    position_rows: ArrayLike | None = None,
    merged: int = 0,
    told: ArrayLike | None = None,
    sinks: int = 0,
    late: bool = False,
    begins: Sequence[int] = (0,),
    n_new: int = 0,
    compute: str = "float32",
    draw: np.random.Generator | None = None,
    by_chance: bool = False,
) -> OracleResult:
    """Forward pass of one sequence as `size` ranks would compute it; without options, the exact one of one rank.

    config, weights: a model's, by the canonical names.
    tokens: ViT: image (channels, height, width); others: ids (n_class + T,), or ids and types (n_class + T, 2), placed
    at `positions` (default 0, 1, ..), with `position_rows` of the position embedding (default as the function of this
    name has them without a mask).
    owner: (T,) the rank, below `size`, that holds each content token; the class token is not counted.
    codec: far tokens are seen through its codebooks. codes: per block (T, C), to be used instead of the oracle's own
    and checked against them. first_coded: blocks before this one see far tokens as they are, and have no codes.
    missing: per block (P, P), receiver by sender, codes that did not come. They are left out, or the block's codes
    `stand_in` (C,) take their place; with a codec that predicts, the prediction does.
    wire: "float16" or "int8": far tokens are seen rounded, their block inputs (gather "x") or keys and values ("kv").
    seen: per block (T, D or 2 D), what came of that, to be used and checked.
    ratio: far slices are seen as means of so many consecutive tokens. An owner's tokens must then be consecutive.
    parts: per block None, or the weights of the `size` sub-blocks of width D / size that take its place.
    told: of a decoder's conversation, whose ranks hold tokens in any order, (T,) which of them others were sent.
    sinks: so many first tokens of a decoder's sequence are seen as they are by all tokens behind them, on any rank.
    late: with a codec that has maps, far tokens are seen as these say, for their codes come after. The last n_new
    tokens were made when these had come. begins: with such a codec, blocks in which far tokens are seen as they are,
    the first and those with which stages of blocks begin.
    compute: "bfloat16" or "int8": the factors of products of blocks and head are rounded (`narrow.py`), as those of
    predictions are in any type. draw: otherwise, or by_chance, which shows how much of the answer hangs on roundings.
    merged: so many tokens at the end see the exact keys of all ranks, as ranks that merge their softmaxes do.
    Raises ValueError if `owner` does not fit `tokens` or `size`.
    """
    rounding = Rounding(compute, draw, by_chance)
    exact = codec is None and wire == "float32" and not ratio
    owner, n_ranks = np.asarray(owner, np.int64), 1 if exact else size
    owner = np.zeros_like(owner) if exact else owner
    embedded = _embed(config, weights, tokens, positions, position_rows)
    pooling, over = getattr(config, "pooling", "mean"), getattr(config, "pooler_over", "cls")
    if config.family == "vit":
        n_class = getattr(config, "class_tokens", 1) + getattr(config, "registers", 0)
    else:
        n_class = int(pooling == "cls" or (pooling == "pooler" and over == "cls"))
    if len(owner) != len(embedded) - n_class or not np.isin(owner, np.arange(n_ranks)).all():
        raise ValueError(f"owner must name one of {n_ranks} ranks for each of {len(embedded) - n_class} content tokens")
    far: Far | None = None
    if codec is not None and codec.config.predicts:
        far = Predicted(owner, codec, codes, missing, size, late, n_new, begins, rounding)
    elif codec is not None and codec.config.has_maps:
        far = Carried(owner, codec, codes, missing, stand_in, late, n_new, begins)
    elif codec is not None:
        far = Quantised(owner, codec, codes, missing, stand_in, first_coded)
    elif not exact:
        far = Means(owner, ratio) if ratio else Rounded(owner, wire, gather, seen)
    if far is not None and told is not None:
        far.look_at_earlier(np.asarray(told))
    elif far is not None and _is_causal(config):
        far.look_back(size)
    if far is not None:
        far.leave_out(sinks)
    n_replicas = n_class * n_ranks
    x = np.concatenate([np.repeat(embedded[:n_class], n_ranks, axis=0), embedded[n_class:]])  # (n_replicas + T, D)
    rank = np.concatenate([np.tile(np.arange(n_ranks), n_class), owner])
    where = np.arange(n_class + len(owner)) if positions is None else np.asarray(positions)
    where = np.concatenate([np.repeat(where[:n_class], n_ranks), where[n_class:]])  # (n_replicas + T,)
    relative = weights.get("embed.relative")
    for i in range(config.n_layers):
        sub_blocks = parts[i] if parts else None
        if sub_blocks is None:
            own = _of_block(weights, i)
            x = _block(config, own, config.n_heads, x, rank, where, far, i, merged, relative, rounding)
        else:
            columns = np.split(x, size, axis=1)
            heads = config.n_heads // size
            pairs = zip(sub_blocks, columns, strict=True)
            made = [_block(config, w, heads, part, rank, where, None, i, rounding=rounding) for w, part in pairs]
            x = np.concatenate(made, axis=1)
    averaged = x[:n_replicas].reshape(n_class, n_ranks, x.shape[1]).mean(axis=1)  # (n_class, D)
    hidden = np.concatenate([averaged, x[n_replicas:]])
    if _is_pre_norm(config):
        hidden = normalised(hidden, weights, "norm", config.norm_eps)
    if config.family not in ENCODERS:
        head = weights["embed.word"].T if config.tied else weights["head.weight"]
        hidden = capped(rounding.product(hidden, head.astype(np.float64)), getattr(config, "logit_cap", 0.0))
    codes_used = far.codes if isinstance(far, Quantised) else []
    flips, worst_gap, sites, gaps = (far.flips, far.worst_gap, far.sites, far.gaps) if far else (0, 0.0, [], [])
    return OracleResult(answer(config, weights, hidden, rounding), hidden, codes_used, flips, worst_gap, sites, gaps)


def _is_causal(config: Any) -> bool:
    """Whether a token sees itself and the tokens before it only."""
    return config.family not in ENCODERS or config.family == "causal_encoder"


def _is_pre_norm(config: Any) -> bool:
    return bool(getattr(config, "norm_first", config.family not in POST_NORM))


def _of_block(weights: Weights, i: int) -> Weights:
    """Weights of block i by their names inside it."""
    prefix = f"blocks.{i}."
    return {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}


def _embed(
    config: Any, weights: Weights, tokens: ArrayLike, positions: ArrayLike | None, rows: ArrayLike | None
) -> Array:
    """(n_class + T, D) in float64."""
    w = {name: np.asarray(array, np.float64) for name, array in weights.items() if name.startswith("embed.")}
    if config.family == "vit":
        image, p = np.asarray(tokens, np.float64), config.patch_size
        n_channels, height, width = len(image), image.shape[1] // p * p, image.shape[2] // p * p
        image = image[:, :height, :width]
        cells = image.reshape(n_channels, height // p, p, width // p, p).transpose(1, 3, 0, 2, 4)
        patches = cells.reshape(-1, n_channels * p * p)  # (T, channels * p * p), rows of patches from the top
        names = [name for name in ("embed.class", "embed.distillation") if name in w]
        placed = np.concatenate([*(w[name][None] for name in names), linear(patches, w, "embed.patch")])
        placed = placed + w["embed.position"]
        registers = w.get("embed.registers", placed[:0])
        x = np.concatenate([placed[: len(names)], registers, placed[len(names) :]])
        return normalised(x, w, "embed.norm", config.norm_eps) if "embed.norm.weight" in w else x
    ids, types = np.asarray(tokens), None
    if ids.ndim == 2:
        ids, types = ids.T
    if getattr(config, "pad_token", -1) < 0:
        rows = np.arange(len(ids)) if positions is None else positions
    elif rows is None:
        rows = position_rows(config, ids, np.ones(len(ids), bool))
    x = w["embed.word"][ids]
    x = x + w["embed.position"][np.asarray(rows)] if "embed.position" in w else x
    x = x + w["embed.type"][0 if types is None else types] if "embed.type" in w else x
    x = normalised(x, w, "embed.norm", config.norm_eps) if "embed.norm.weight" in w else x
    return linear(x, w, "embed.project") if "embed.project.weight" in w else x


def position_rows(config: Any, ids: Array, keep: Array) -> Array:
    """Rows of the position embedding of a sequence's kept tokens; ids and keep (T,) of all. A model may count some
    tokens only, from 1."""
    uncounted = getattr(config, "pad_token", -1)
    if uncounted < 0:
        return np.flatnonzero(keep)
    found, count = [], 0
    for token, kept in zip(ids, keep, strict=True):
        count += token != uncounted
        if kept:
            found.append(count if token != uncounted else 0)
    return np.array(found, np.int64)


def _block(
    config: Any,
    w: Weights,
    n_heads: int,
    x: Array,
    rank: Array,
    places: Array,
    far: Far | None,
    i: int,
    merged: int = 0,
    relative: Array | None = None,
    rounding: Rounding = EXACT,
) -> Array:
    """Pre-norm: x + f(norm(x)); post-norm (BERT): norm(x + f(x)). Some normalise f(x), or not before it.

    x: (rows, D) on the ranks `rank` (rows,); places: (rows,) their positions, a decoder's in order. relative: biases
    by distance, (buckets, H).
    """
    pre_norm, long = _is_pre_norm(config), False
    if is_rotary(config):
        long = bool(places.max(initial=0) >= config.rope_trained_positions)

    def norm(x: Array, which: str) -> Array:
        return normalised(x, w, which, config.norm_eps) if which + ".weight" in w else x

    def layer(x: Array, name: str) -> Array:
        return linear(x, w, name, rounding)

    def key_of(x: Array) -> Array:
        return _head_norm(config, w, "k_norm", layer(x, "k"))

    normed = norm(x, "norm1") if pre_norm else x
    q = _head_norm(config, w, "q_norm", layer(normed, "q"))
    keys, values = key_of(normed), layer(normed, "v")
    sees_all = np.arange(len(x)) >= len(x) - merged
    visible = (rank[:, None] == rank[None, :]) | sees_all[:, None]  # (rows, rows): same rank, exact keys
    if far is not None:
        visible[:, : far.n_sinks] = True
    if _is_causal(config):
        visible = np.tril(visible)
    bias, key_places = np.zeros(len(x)), places
    if far is not None:
        content = slice(len(x) - far.n_tokens, None)  # class tokens are never sent
        away = far.visible(i, rank) & ~sees_all[:, None]
        away &= np.arange(away.shape[1]) % far.n_tokens >= far.n_sinks
        away &= within(config, i, places, np.resize(places[content], away.shape[1]))
        if any(getattr(config, "windows", ())):
            far.judge_seen(np.asarray(away[:, : far.n_tokens].any(axis=0)))
        if far.site == "kv":
            k_far, v_far = far(i, keys[content], values[content])
        else:
            (seen,) = far(i, x[content] if far.site == "hidden" else normed[content])
            seen = norm(seen, "norm1") if pre_norm and far.site == "hidden" else seen
            k_far, v_far = key_of(seen), layer(seen, "v")
        keys, values = np.concatenate([keys, k_far]), np.concatenate([values, v_far])
        visible = np.concatenate([visible, away], axis=1)
        bias = np.concatenate([bias, far.bias])
        # far rows are the same tokens, in the same order, once or twice; means have no position
        key_places = np.concatenate([places, np.resize(places[content], len(k_far))])
    if is_rotary(config):
        q = turned(config, i, q, places, long)
        keys = turned(config, i, keys, key_places, long)
    visible = visible & within(config, i, places, key_places)
    added = np.tile(bias, (n_heads, len(x), 1))  # (H, rows, m)
    if relative is not None:
        furthest = getattr(config, "furthest", 128)
        added += relative_bias(np.asarray(relative, np.float64), furthest, places, key_places)
    attended = layer(attention(config, q, keys, values, visible, added, n_heads, rounding), "o")
    entering = x
    x = x + norm(attended, "post1")
    x = x if pre_norm else norm(x, "norm1")
    if not getattr(config, "parallel", False):
        entering = x
    if pre_norm:
        entering = norm(entering, "norm1" if "norm1.weight" in w and "norm2.weight" not in w else "norm2")
    inner = layer(entering, "fc1")
    if "gate.weight" in w:
        inner = inner * activated(layer(entering, "gate"), config.activation)
    else:
        inner = activated(inner, config.activation)
    x = x + norm(layer(inner, "fc2"), "post2")
    return x if pre_norm else norm(x, "norm2")


def _head_norm(config: Any, w: Weights, name: str, x: Array) -> Array:
    """Queries or keys (rows, H d), normalised where there is a weight: per head, or all heads of a token together."""
    if name + ".weight" not in w:
        return x
    weight = w[name + ".weight"].astype(np.float64)
    heads = x if config.family in ALL_HEADS else x.reshape(len(x), -1, config.d_head)
    if config.family in CENTRED_HEADS:
        heads = heads - heads.mean(axis=-1, keepdims=True)
    heads = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + config.norm_eps)
    return heads.reshape(x.shape) * np.resize(weight, x.shape[1])
