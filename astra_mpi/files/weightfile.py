"""Weights on disk (docs/reference/model-file.md): written one at a time, mapped when read, checked in one pass."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.config import require
from astra_mpi.device.formats import FORMATS
from astra_mpi.device.weights import Narrow, Weights, narrowed
from astra_mpi.errors import some
from astra_mpi.files import hdf5

Shapes = Mapping[str, tuple[int, ...]]
#: whether a weight is wanted, by its name
Held = Callable[[str], bool]
#: bytes read at a time when a file is checked: they stay in the cache for all checks
_CHUNK = 1 << 20


def write_weights(file: hdf5.Written, head: str, weights: Weights, shapes: Shapes, dtype: str | None) -> None:
    """Create /weights, /scales where a format has some, and the attributes `digest` and `manifest`.

    head: what the digest begins with. dtype: their format; None: what each of them is. Weights are asked for
    one at a time, so that they can be made on demand.
    InputError on weights that are not finite, not of `shapes`, or exceed `dtype`; AstraError if they cannot be written.
    """
    check_names(file.filename, shapes, weights)
    identity, lines = hashlib.sha256(head.encode()), []
    group = file.create_group("weights")
    for name in sorted(shapes):
        stored = _as_stored(name, weights[name], shapes[name], dtype)
        item, checksum = _write(file, group, name, stored)
        file.check()
        identity.update(f"{name} {stored.shape}\n".encode())
        for rows in _row_slices(stored):
            identity.update(np.ascontiguousarray(stored[rows], "<f4").data)
        item.attrs["sha256"] = checksum
        lines.append(_line(item, name))
    digest = identity.hexdigest()
    file.attrs.update({"digest": digest, "manifest": _manifest(head, digest, lines)})


def _as_stored(name: str, weight: Any, shape: tuple[int, ...], dtype: str | None) -> np.ndarray | Narrow:
    check_shape("the model", name, weight.shape, shape)
    not_finite = f"weight {name} has NaN or infinite values; repair the source"
    if isinstance(weight, Narrow):
        if dtype in (None, weight.dtype):
            require(weight.finite(weight.values), not_finite)
            return weight
        weight = np.asarray(weight)
    require(_finite(weight), not_finite)
    stored = narrowed(name, weight, dtype or "float32")
    too_large = f"weight {name} has values too large for {dtype}; use --dtype float32"
    require(isinstance(stored, np.ndarray) or stored.finite(stored.values), too_large)
    return stored


def _write(file: h5py.File, group: h5py.Group, name: str, stored: np.ndarray | Narrow) -> tuple[h5py.Dataset, str]:
    """-> the dataset and the sha256 of what it and its scales hold."""
    if isinstance(stored, np.ndarray):
        return group.create_dataset(name, data=stored), hashlib.sha256(stored.data).hexdigest()
    item, sha = group.create_dataset(name, data=stored.values), hashlib.sha256(stored.values.data)
    if stored.tagged:
        item.attrs["dtype"] = stored.dtype
    if stored.scale is not None:
        file.require_group("scales").create_dataset(name, data=stored.scale)
        sha.update(stored.scale.data)
    return item, sha.hexdigest()


def read_weights(
    file: h5py.File, head: str, shapes: Shapes, share: tuple[int, int] = (0, 1), held: Held | None = None
) -> tuple[Weights, str]:
    """-> (weights, what matrices are stored as) of an open model file, checked.

    Matrices are mapped, so they take memory only where and when they are used; vectors are float32 arrays.
    share = (r, n): check the contents of every n-th weight only, from the r-th on. held: of others nothing is read but
    their shapes. InputError on what does not fit.
    """
    group = hdf5.group(file, "weights")
    check_names(file.filename, shapes, group)
    numbers = tuple(dict.fromkeys(kind.number.name for kind in FORMATS.values()))
    items = {name: hdf5.dataset(group, name, numbers) for name in sorted(shapes)}
    dtypes = {name: stored_dtype(item) for name, item in items.items()}
    for name, item in items.items():
        check_shape(file.filename, name, item.shape, FORMATS[dtypes[name]].stored_shape(name, shapes[name]))
    scales = {
        name: _scale(file, name, FORMATS[dtype].scale_shape(name, shapes[name])) for name, dtype in dtypes.items()
    }
    if "manifest" in file.attrs:
        lines = [_line(item, name) for name, item in items.items()]
        _require_whole(file, hdf5.text(file, "manifest") == _manifest(head, hdf5.text(file, "digest"), lines))
        for name in [name for name in items if held is None or held(name)][share[0] :: share[1]]:
            _check(file, items[name], dtypes[name], scales[name])
    else:
        _require_whole(file, hdf5.text(file, "digest") == _streamed_digest(file, head, items, dtypes))
    weights: dict[str, Any] = {}
    for name, item in items.items():
        if held is not None and not held(name):
            continue
        if item.ndim < 2:
            weights[name] = hdf5.read(item, "float32")
        else:
            values = _mapped(file, item)
            weights[name] = FORMATS[dtypes[name]].from_stored(name, shapes[name], values, scales[name])
    matrices = {dtypes[name] for name, shape in shapes.items() if len(shape) > 1}
    return weights, min(matrices, key=lambda dtype: FORMATS[dtype].bits)


def stored_dtype(item: h5py.Dataset) -> str:
    """The format of a dataset's numbers; InputError on those that must say it and do not, and on narrow vectors."""
    where = f"{item.file.filename}: {item.name}"
    named = str(item.attrs.get("dtype"))
    kinds = [kind for kind in FORMATS.values() if kind.number == item.dtype]
    told = [kind for kind in kinds if kind.tagged and kind.dtype == named] or [k for k in kinds if not k.tagged]
    known = " or ".join(kind.dtype for kind in kinds)
    require(len(told) == 1, f"{where} is {item.dtype} without dtype = {known}; make the file anew")
    name = told[0].dtype
    require(item.ndim > 1 or item.dtype.kind == "f", f"{where} is {name}; vectors must be float32; make it anew")
    return name


def _scale(file: h5py.File, name: str, shape: tuple[int, ...] | None) -> np.ndarray | None:
    if shape is None:
        return None
    scale = hdf5.dataset(hdf5.group(file, "scales"), name, ("float32",))
    require(
        scale.shape == shape,
        f"{file.filename}: {scale.name} has shape {scale.shape}, its weight needs {shape}; convert it again",
    )
    return hdf5.read(scale, "float32")


def _mapped(file: h5py.File, item: h5py.Dataset) -> np.ndarray:
    """A dataset's array in the file itself, read-only; read into memory where it does not lie on its own boundary."""
    offset = item.id.get_offset()
    if not item.size or offset % item.dtype.itemsize:
        return hdf5.read(item, str(item.dtype))
    return np.asarray(np.memmap(file.filename, item.dtype, "r", offset, item.shape))


def _check(file: h5py.File, item: h5py.Dataset, dtype: str, scale: np.ndarray | None) -> None:
    """InputError unless the numbers are those that were written, and finite."""
    name, sha = item.name.rpartition("/")[2], hashlib.sha256()
    for chunk in _chunks(file, item):
        sha.update(chunk.data)
        _require_finite(file, name, FORMATS[dtype].finite(chunk))
    if scale is not None:
        sha.update(scale.data)
        _require_finite(file, name, _finite(scale))
    _require_whole(file, hdf5.text(item, "sha256") == sha.hexdigest(), f"weight {name}")


def _streamed_digest(file: h5py.File, head: str, items: Mapping[str, h5py.Dataset], dtypes: Mapping[str, str]) -> str:
    """The digest from the numbers, in files of before there was a manifest: float32 and float16 only."""
    sha = hashlib.sha256(head.encode())
    for name, item in items.items():
        require(item.dtype.kind == "f", f"{file.filename} has no manifest; convert the model again")
        sha.update(f"{name} {item.shape}\n".encode())
        for chunk in _chunks(file, item):
            _require_finite(file, name, FORMATS[dtypes[name]].finite(chunk))
            sha.update(chunk.astype("<f4", copy=False).data)
    return sha.hexdigest()


def _chunks(file: h5py.File, item: h5py.Dataset) -> Iterator[np.ndarray]:
    """A dataset's numbers in order, some at a time, in one buffer; read past the library, which would copy."""
    if not item.size:
        return
    # of blocks only whole ones
    unit = item.dtype.itemsize * (item.shape[-1] if item.ndim > 2 else 1)
    left, buffer = item.nbytes, np.empty(max(unit, _CHUNK // unit * unit), np.uint8)
    with open(file.filename, "rb", buffering=0) as raw:
        raw.seek(item.id.get_offset())
        while left:
            n_read = raw.readinto(buffer[:left].data) or 0
            n_read -= n_read % unit
            require(n_read > 0, f"{file.filename} is truncated; copy it again or make it anew")
            raw.seek(item.id.get_offset() + item.nbytes - left + n_read)
            left -= n_read
            yield buffer[:n_read].view(item.dtype)


def _row_slices(stored: np.ndarray | Narrow) -> Iterator[slice]:
    """Slices of a weight's first axis that hold a few MiB each."""
    step = max(1, _CHUNK * len(stored) // max(1, stored.size))
    return (slice(first, first + step) for first in range(0, len(stored), step))


def _finite(array: np.ndarray) -> bool:
    return all(bool(np.isfinite(array[rows]).all()) for rows in _row_slices(array))


def _line(item: h5py.Dataset, name: str) -> str:
    return f"{name} {item.shape} {stored_dtype(item)} {hdf5.text(item, 'sha256')}\n"


def _manifest(head: str, digest: str, lines: Iterable[str]) -> str:
    return hashlib.sha256(f"{head}{digest}\n{''.join(lines)}".encode()).hexdigest()


def _require_whole(file: h5py.File, whole: bool, what: str = "its weights or config") -> None:
    require(
        whole,
        f"{file.filename} is damaged or edited ({what} differ from its digest); copy or convert it again",
    )


def _require_finite(file: h5py.File, name: str, finite: bool) -> None:
    require(finite, f"{file.filename}: weight {name} has NaN or infinite values; repair the source")


def check_names(path: str | Path, shapes: Shapes, found: Iterable[str]) -> None:
    """InputError unless the weights found are those that the config asks for."""
    missing, extra = sorted(set(shapes) - set(found)), sorted(set(found) - set(shapes))
    are = {True: "is", False: "are"}
    require(not missing, f"{path}: weight {some(missing)} {are[len(missing) == 1]} missing; convert the model again")
    require(not extra, f"{path}: weight {some(extra)} {are[len(extra) == 1]} unknown to its config; convert it again")


def check_shape(path: str | Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """InputError unless a weight has the shape that the config asks for."""
    require(found == wanted, f"{path}: weight {name} has shape {found}, its config says {wanted}; convert it again")
