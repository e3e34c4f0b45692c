"""How the kernels are compiled, and where their machine code is kept between runs.

Numba keeps it in NUMBA_CACHE_DIR, else in `__pycache__` beside the source, else in the user's cache folder, whichever
can be written first. Its own cache is an error where none can, where the disk is full, and where a file is damaged.
Here a kernel that cannot be kept, or read back, is compiled in memory; `STATE` says why. A kernel that was filed before
(`astra-mpi compile`) is also read from those of the folders that cannot be written.

In NUMBA_CACHE_DIR kernels lie by the contents of all sources, so that installations at several paths share them.
"""

import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from numba import config, njit, types
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    InTreeCacheLocator,
    UserProvidedCacheLocator,
    UserWideCacheLocator,
)
from numba.core.ccallback import CFunc
from numba.core.serialize import dumps

#: of functions that say nothing else
EXACT: dict[str, Any] = {"fastmath": False, "error_model": "numpy"}


@dataclass
class CacheState:
    """What became of this process's kernels."""

    folder: str = ""  # where they are kept; "": nowhere
    trouble: str = ""  # why they, or some, are not kept
    n_compiled: int = 0  # those that were not found there
    found_in: str = ""  # where the last one lay that was not compiled
    folders: set[str] = field(default_factory=set)  # all of them: one for each folder of sources


STATE = CacheState()
#: whether a folder is being filled: what others have does not count as found
FILLS = False


class _Given(UserProvidedCacheLocator):
    """NUMBA_CACHE_DIR: a folder for each state of the sources."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        below = os.path.relpath(os.path.dirname(os.path.abspath(file)), Path(__file__).parent)
        if not below.startswith(os.pardir):
            given = config.CACHE_DIR  # type: ignore[attr-defined]
            self._cache_path = os.path.join(given, f"astra-mpi-{_sources_stamp()[:16]}", below)


class _Nowhere(InTreeCacheLocator):
    """Where no folder can be written."""

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> "_Nowhere":
        return cls(function, file)


class _Contents(CompileResultCacheImpl):
    """A kept kernel with a checksum, and with the processor that it is for.

    Processes of several processors that share a folder, and start together, may file a kernel under each other's name.
    """

    _locator_classes: list[Any] = [_Given, InTreeCacheLocator, UserWideCacheLocator, _Nowhere]  # noqa: RUF012

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
        file, base = function.__code__.co_filename, self._impl.filename_base
        self._kept = not isinstance(self._impl.locator, _Nowhere)
        self._cache_file = IndexDataCacheFile(self._cache_path, base, _sources_stamp())
        given: list[Any] = [_Given] if config.CACHE_DIR else []  # type: ignore[attr-defined]
        places = [*given, InTreeCacheLocator, UserWideCacheLocator]
        paths = [place(function, file).get_cache_path() for place in places]
        others = [path for path in paths if path != self._cache_path or not self._kept]
        self._others = [IndexDataCacheFile(path, base, _sources_stamp()) for path in others]
        if self._kept:
            STATE.folder = self._cache_path
            STATE.folders.add(self._cache_path)
        else:
            STATE.trouble = _no_folder(function)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        key = self._index_key(sig, target_context.codegen())
        for file in [self._cache_file] * self._kept + self._others * (not FILLS):
            try:
                data = file.load(key)
                found = None if data is None else self._impl.rebuild(target_context, data)
            except Exception:  # whatever a damaged file may lead to
                found = None
                if file is self._cache_file:
                    with suppress(Exception):
                        self.flush()  # or no kernel could be filed under this index any more
            # two processes that save at once may swap two types of one kernel
            if found is not None and tuple(found.signature.args) == tuple(getattr(sig, "args", sig)):
                STATE.found_in = file._cache_path
                return found
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        STATE.n_compiled += 1
        if not self._kept:
            return
        try:
            super().save_overload(sig, data)
        except Exception as exc:
            reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else f"{type(exc).__name__}: {exc}"
            STATE.trouble = f"{self.cache_path} cannot be written ({reason})"


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`numba.njit` that releases the interpreter's lock and keeps the machine code where that is possible.

    Options that are not given are set too: Numba would take those of whichever caller is compiled first.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        kernel = njit(nogil=True, **(EXACT | options))(function)
        if hasattr(kernel, "_cache"):  # not under NUMBA_DISABLE_JIT
            kernel._cache = _Cache(function)
        return kernel

    return decorate


class Native:
    """A C function of three int64 numbers, for `_team.run_native`. It returns 1; 0 if something was raised in it.

    It is compiled when its address is asked for, so that what other processors have may stand beside it.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def address(self) -> int:
        arguments = (types.int64,) * 3
        native: Any = CFunc(self._function, (arguments, types.int64), {}, dict(EXACT))
        native._cache = _Cache(self._function)
        native.compile()
        self._native = native  # which holds the code
        return int(native.address)


def _no_folder(function: Callable[..., Any]) -> str:
    folder = getattr(config, "CACHE_DIR", "")
    given = f"NUMBA_CACHE_DIR={folder}, " if folder else ""
    beside = os.path.join(os.path.dirname(function.__code__.co_filename), "__pycache__")
    return f"none of {given}{beside} and the user's cache folder can be written"
