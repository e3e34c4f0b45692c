"""What is done with the scores of attention in bfloat16: which keys a row sees, caps, and biases by distance."""

from typing import NamedTuple

import numpy as np

from astra_mpi.kernels._compile import compiled
from astra_mpi.kernels.cpu._math import FASTMATH, exp, f32

#: no biases by distance, and no places
NONE = np.zeros((1, 1), np.float32), np.zeros(1, np.int32)


class Scores(NamedTuple):
    """What is done with scores."""

    bias: np.ndarray  # (m',) float32, of keys; -inf beyond the last
    biased: bool  # whether any key has one
    reach: int  # query i sees key j when j <= i + reach
    cap: float
    window: int  # see Near, as for the rest
    relative: np.ndarray
    query_places: np.ndarray
    key_places: np.ndarray


@compiled()
def span(row, n, sizes, scores):
    """From the first to the last key that rows row .. row + n - 1 see; the first is made a multiple of 32."""
    first, last = row // sizes.repeat, (row + n - 1) // sizes.repeat
    end = min(sizes.n_keys, last + scores.reach + 1)
    if scores.window == 0 or end <= 0:
        return 0, end
    low, high = scores.query_places[first], scores.query_places[first]
    for i in range(first, last + 1):
        low, high = min(low, scores.query_places[i]), max(high, scores.query_places[i])
    places = scores.key_places[:end]
    begin = np.searchsorted(places, low - scores.window, "right") // 32 * 32
    return begin, np.searchsorted(places, high + scores.window, "left")


@compiled(fastmath=FASTMATH)
def adjust(block, scores, sizes, group, first_row, n_rows, first_key, n_keys):
    """Scores of n_rows and n_keys of a key head capped, biased by distance, and -inf beyond the window."""
    repeat = sizes.repeat
    cap, window = f32(scores.cap), scores.window
    scale = f32(2) / cap if cap > 0 else f32(0)
    most = scores.relative.shape[1] // 2
    for r in range(n_rows):
        row, head, i = block[r], group * repeat + (first_row + r) % repeat, (first_row + r) // repeat
        if cap > 0:  # cap tanh(s / cap), with tanh u = 1 - 2 / (exp(2 u) + 1)
            for j in range(n_keys):
                row[j] = cap - f32(2) * cap / (exp(min(row[j] * scale, f32(80))) + f32(1))
        if window > 0 or most > 0:
            places, place = scores.key_places[first_key : first_key + n_keys], scores.query_places[i]
            biases = scores.relative[head if most > 0 else 0]
            for j in range(n_keys):
                distance = places[j] - place
                if window > 0 and abs(distance) >= window:
                    row[j] = f32(-np.inf)
                elif most > 0:
                    row[j] += biases[min(max(distance, -most), most) + most]


@compiled()
def hide(block, n_rows, n_pairs, first_row, repeat, reach):
    """-inf where a row's query does not see a key."""
    for r in range(n_rows):
        for j in range(max(0, (first_row + r) // repeat + reach + 1), 32 * n_pairs):
            block[r, j] = f32(-np.inf)
