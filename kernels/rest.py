"""What is left of a block after its attention, for kernels that compute it in one call."""

from typing import NamedTuple

import numpy as np


class Rest(NamedTuple):
    """Its layers, float32, where what they give is added as it is: x += a o + b, x += act(norm(x) fc1 + b) fc2 + b."""

    o: np.ndarray  # (E, D)
    o_bias: np.ndarray | None  # (D,), as all that follow of D numbers
    norm: np.ndarray
    norm_bias: np.ndarray | None  # None: the root mean square alone
    eps: float
    fc1: np.ndarray  # (D, F)
    fc1_bias: np.ndarray | None  # (F,)
    activation: str
    fc2: np.ndarray  # (F, D)
    fc2_bias: np.ndarray | None
