"""How the kernels are compiled, and where their machine code is kept between runs.

Numba keeps it in NUMBA_CACHE_DIR, else in `__pycache__` beside the source, else in the user's cache folder, whichever
can be written first. Its own cache is an error where none can, where the disk is full, and where a file is damaged.
Here a kernel that cannot be kept, or read back, is compiled in memory; `STATE` says why.
"""

import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, NullCache
from numba.core.serialize import dumps

#: of functions that say nothing else
EXACT: dict[str, Any] = {"fastmath": False, "error_model": "numpy"}


@dataclass
class CacheState:
    """What became of this process's kernels."""

    folder: str = ""  # where they are kept; "": nowhere
    trouble: str = ""  # why they, or some, are not kept
    n_compiled: int = 0  # those that were not found there


STATE = CacheState()


class _Contents(CompileResultCacheImpl):
    """A kept kernel with a checksum, and with the processor that it is for.

    Processes of several processors that share a folder, and start together, may file a kernel under each other's name.
    """

    def reduce(self, cres: Any) -> tuple[bytes, bytes]:
        data = dumps((cres.codegen.magic_tuple(), super().reduce(cres)))
        return hashlib.sha256(data).digest(), data

    def rebuild(self, target_context: Any, payload: tuple[bytes, bytes]) -> Any:
        digest, data = payload
        if hashlib.sha256(data).digest() != digest:
            raise ValueError("damaged")
        processor, reduced = pickle.loads(data)
        if processor != target_context.codegen().magic_tuple():
            raise ValueError("of another processor")
        return super().rebuild(target_context, reduced)


@cache
def _sources_stamp() -> str:
    """Of all sources of kernels: one is compiled anew when any of them changes, for it may call what is in another."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


class _Cache(FunctionCache):
    """Numba's cache of one kernel, without its errors."""

    _impl_class = _Contents

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file = IndexDataCacheFile(self._cache_path, self._impl.filename_base, _sources_stamp())

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # whatever a damaged file may lead to
            with suppress(Exception):
                self.flush()  # or no kernel could be filed under this index any more
            return None
        # two processes that save at once may swap two types of one kernel
        return found if found is None or tuple(found.signature.args) == tuple(getattr(sig, "args", sig)) else None

    def save_overload(self, sig: Any, data: Any) -> None:
        STATE.n_compiled += 1
        try:
            super().save_overload(sig, data)
        except Exception as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else f"{type(exc).__name__}: {exc}"
            STATE.trouble = f"{self.cache_path} cannot be written ({reason})"


class _Nowhere(NullCache):
    """Where no folder can be written."""

    def save_overload(self, sig: Any, cres: Any) -> None:
        STATE.n_compiled += 1


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` that releases the interpreter's lock and keeps the machine code where that is possible.

    Options that are not given are set too: Numba would take those of whichever caller is compiled first.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel = njit(nogil=True, **(EXACT | options))(function)
        if hasattr(kernel, "_cache"):  # not under NUMBA_DISABLE_JIT
            try:
                kernel._cache = _Cache(function)
                STATE.folder = kernel._cache.cache_path
            except (RuntimeError, OSError):
                kernel._cache = _Nowhere()
                STATE.trouble = _no_folder(function)
        return kernel

    return decorate


def _no_folder(function: Callable[..., Any]) -> str:
    folder = getattr(config, "CACHE_DIR", "")
    given = f"NUMBA_CACHE_DIR={folder}, " if folder else ""
    beside = os.path.join(os.path.dirname(function.__code__.co_filename), "__pycache__")
    return f"none of {given}{beside} and the user's cache folder can be written"
