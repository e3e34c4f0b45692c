"""What is made of an array that nobody changes, for as long as the array lives."""

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Kept(Generic[T]):
    """Makes it at the first call with an array, and forgets it with the array."""

    def __init__(self, make: Callable[..., T]) -> None:
        self._make = make
        self.of: dict[int, tuple[weakref.ref, T]] = {}

    def __call__(self, array: np.ndarray, *more: Any) -> T:
        """more: what it is made of besides, the same in every call with this array."""
        key = id(array)
        if key not in self.of:
            self.of[key] = weakref.ref(array, lambda _: self.of.pop(key, None)), self._make(array, *more)
        return self.of[key][1]
