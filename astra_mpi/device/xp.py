"""One code for NumPy and CuPy arrays: which module an array belongs to, and what moves between host and device.

CuPy is never imported here: an array that is not NumPy's can only have come from it.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np

_uploaded: dict[int, tuple[weakref.ref, Any]] = {}


def on_host(x: Any) -> bool:
    """Whether x is no array of a device: narrow weights are on the host as well."""
    return isinstance(x, np.ndarray) or not hasattr(x, "__cuda_array_interface__")


def module_of(x: Any) -> Any:
    """numpy or cupy, whichever x is an array of."""
    return np if on_host(x) else sys.modules["cupy"]


def to_host(x: Any) -> np.ndarray:
    """x as a NumPy array; waits for the device where there is one."""
    return x if isinstance(x, np.ndarray) else x.get()


def settle(x: Any) -> None:
    """Wait until x has been computed."""
    if not isinstance(x, np.ndarray):
        module_of(x).cuda.get_current_stream().synchronize()


def beside(x: Any, constant: Any) -> Any:
    """`constant`, a host array that nobody changes, where x lives: uploaded once, kept while the host array lives."""
    if on_host(x) or not isinstance(constant, np.ndarray):
        return constant
    key = id(constant)
    if key not in _uploaded:
        forget = weakref.ref(constant, lambda _: _uploaded.pop(key, None))
        _uploaded[key] = forget, module_of(x).asarray(constant)
    return _uploaded[key][1]


def take(x: Any, rows: np.ndarray | slice) -> Any:
    """x[rows], where `rows` are constant indices or a slice."""
    return x[rows] if isinstance(rows, slice) else x[beside(x, rows)]
