"""How functions are compiled that only compiled functions call."""

from collections.abc import Callable
from typing import Any

from numba import njit

from astra_mpi.kernels._compile import EXACT


def inner(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit` without what calls from Python need: less to compile."""
    compile_: Any = njit  # whose types do not know these two options
    options = EXACT | options
    decorate: Callable[[Callable[..., Any]], Any] = compile_(no_cpython_wrapper=True, no_cfunc_wrapper=True, **options)
    return decorate
