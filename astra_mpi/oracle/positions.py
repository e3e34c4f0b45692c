"""What positions do in the serial oracle: by how much pairs turn, biases by distance, and windows."""

from __future__ import annotations

import cmath
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def is_rotary(config: Any) -> bool:
    return hasattr(config, "rope_theta")


def turned(config: Any, i: int, x: Array, places: Array, long: bool) -> Array:
    """Heads of x (rows, ..) of block i, at `places` (rows,), as complex pairs (a, a + d/2), each turned.

    long: the sequence goes beyond the positions that a model with longrope was trained on.
    """
    if i in getattr(config, "unturned", ()):
        return x
    steps = frequencies(config, i, long)
    heads = x.reshape(len(x), x.shape[1] // (2 * len(steps)), 2, len(steps))
    pairs = (heads[:, :, 0] + 1j * heads[:, :, 1]) * np.array(
        [[cmath.exp(1j * place * angle) for angle in steps] for place in places.tolist()]
    ).reshape(len(x), 1, -1)
    still = np.arange(len(steps)) >= _width(config) // 2
    pairs = pairs * np.where(still | _is_local(config, i), 1.0, getattr(config, "rope_scale", 1.0))
    return np.stack([pairs.real, pairs.imag], axis=2).reshape(x.shape)


def frequencies(config: Any, i: int, long: bool = False) -> list[float]:
    """By how much each of the d / 2 pairs of a head turns from one position to the next."""
    width, local = _width(config), _is_local(config, i)
    theta = config.rope_local_theta if local else config.rope_theta
    found = []
    for pair in range(_d_head(config) // 2):
        angle = 1 / theta ** (2 * pair / width)
        if pair >= width // 2:
            angle = 0.0
        elif not local:
            angle = _slowed(config, pair, angle, long)
        found.append(angle)
    return found


def _d_head(config: Any) -> int:
    return int(getattr(config, "d_head", 0) or config.d_model // config.n_heads)


def _width(config: Any) -> int:
    """Numbers of a head that turn."""
    return int(getattr(config, "rope_width", 0) or _d_head(config))


def _is_local(config: Any, i: int) -> bool:
    """Whether block i has angles of its own, because it has a window."""
    return bool(getattr(config, "rope_local_theta", 0) and config.windows and config.windows[i])


def _slowed(config: Any, pair: int, angle: float, long: bool) -> float:
    """For contexts longer than the model was trained on."""
    if config.rope_type == "linear":
        return angle / config.rope_factor
    if config.rope_type == "longrope":
        return angle / (config.rope_long if long else config.rope_short)[pair]
    if config.rope_type == "yarn":
        low, high = config.rope_ramp
        share = min(max((pair - low) / max(high - low, 0.001), 0), 1)
        return share * angle / config.rope_factor + (1 - share) * angle
    if config.rope_type == "llama3":
        wavelength, trained = 2 * math.pi / angle, config.rope_trained_positions
        if wavelength > trained / config.rope_low_factor:
            return angle / config.rope_factor
        if wavelength > trained / config.rope_high_factor:
            smooth = trained / wavelength - config.rope_low_factor
            smooth /= config.rope_high_factor - config.rope_low_factor
            return (1 - smooth) * angle / config.rope_factor + smooth * angle
    return angle


def within(config: Any, i: int, queries: Array, keys: Array) -> Array:
    """(rows, m): whether keys at positions `keys` (m,) are in block i's window of those of `queries` (rows,)."""
    windows = getattr(config, "windows", ())
    window = windows[i] if windows else 0
    distance = abs(queries[:, None] - keys[None, :])
    return distance < window if window else np.ones_like(distance, bool)


def relative_bias(table: Array, furthest: int, queries: Array, keys: Array) -> Array:
    """(H, rows, m) from learnt biases (buckets, H): half of the buckets for keys behind the query.

    Of each half, the first half are distances one by one, the others grow as their logarithm up to `furthest`.
    """
    half = len(table) // 2
    exact = half // 2
    found = np.empty((table.shape[1], len(queries), len(keys)))
    for r, query in enumerate(queries.tolist()):
        for j, key in enumerate(keys.tolist()):
            distance, bucket = abs(key - query), half if key > query else 0
            if distance < exact:
                bucket += distance
            else:
                grown = math.log(distance / exact) / math.log(furthest / exact) * (half - exact)
                bucket += min(exact + int(grown), half - 1)
            found[:, r, j] = table[bucket]
    return found
