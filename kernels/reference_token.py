"""What `kernels.cpu.token` keeps of keys and values, in NumPy: the specification.

What a token is made of otherwise is specified by `reference`: products, norms, activations and attention, one after
another.
"""

import numpy as np

Array = np.ndarray


def kept(rows: Array, kind: str) -> Array:
    """Rows of a head (.., d) float32 as they are read again, float32.

    kind: "bfloat16", rounded to nearest, ties to even; "int8", integers times a factor of each row, which makes its
    largest magnitude 127; "float32", as they are.
    """
    if kind == "bfloat16":
        bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return rounded.view(np.float32)
    if kind == "int8":
        largest = np.abs(rows).max(axis=-1, keepdims=True)
        factor = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
        return np.floor(rows * (np.float32(1) / factor) + np.float32(0.5)) * factor
    return rows
