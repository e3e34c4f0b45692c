"""What is left of a block after its attention, for kernels that compute it in one call."""

from dataclasses import dataclass, fields

import numpy as np


@dataclass(frozen=True)
class Rest:
    """Its layers, float32, where what they give is added as it is: x += a o + b, x += act(norm(x) fc1 + b) fc2 + b.

    TypeError on other types, and on vectors whose numbers lie apart.
    """

    o: np.ndarray  # (E, D)
    o_bias: np.ndarray  # (D,), as all that follow of D numbers
    norm: np.ndarray
    norm_bias: np.ndarray | None  # None: by the root mean square alone
    eps: float
    fc1: np.ndarray  # (D, F)
    fc1_bias: np.ndarray  # (F,)
    activation: str
    fc2: np.ndarray  # (F, D)
    fc2_bias: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            array = getattr(self, field.name)
            if isinstance(array, np.ndarray) and (array.dtype != np.float32 or array.strides[-1] != array.itemsize):
                raise TypeError(f"{field.name}: {array.dtype} {array.shape}; rows of float32 are needed")
        (e, d), (n, f) = self.o.shape, self.fc1.shape
        of_d = [self.o_bias, self.norm, self.fc2_bias, *([] if self.norm_bias is None else [self.norm_bias])]
        fits = n == d and self.fc2.shape == (f, d) and self.fc1_bias.shape == (f,)
        if not fits or any(line.shape != (d,) for line in of_d):
            raise TypeError(f"layers of {e} x {d}, {n} x {f} and {self.fc2.shape} do not follow each other")
