"""Codebooks on disk: the group /codec of a model file, or a codebook file for a model that lies elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook, Transform, no_codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig, Counts
from astra_mpi.codec.kinds.scalar import HEAD, HEAD_STAGES
from astra_mpi.codec.predictor import Predictor
from astra_mpi.config import ModelConfig, require, stored_fields
from astra_mpi.files import checksum, hdf5
from astra_mpi.files.provenance import write_provenance

_TEXTS, _NUMBERS = ("site", "kind"), ("codebook_size", "groups")
#: one number, or one per block and codebook; the last is stored only where it is set
_COUNTS = ("stages", "vector_bits")
#: stored only where they are set
_OPTIONAL = ("near", "near_stages", "sinks", "inputs")
#: lists, which are stored only where they are set
_LISTS = ("awaited",)
#: how the arrays of a transform are called behind the name of their entries
_TRANSFORM = ("forward", "back", "offset")
#: datasets of a predictor: its factors, of which there may be one, and its bias
_PREDICTOR = ("predictor", "predictor_out", "predictor_bias")

#: how entries may be stored
DTYPES = ("float32", "float16")


def rounded(codec: Codec, dtype: str) -> Codec:
    """The codec that is read back when its entries are stored as `dtype`. InputError if they are too large for it."""
    if dtype == "float32":
        return codec
    with np.errstate(over="ignore"):
        return Codec(codec.config, tuple(_rounded_block(block, dtype) for block in codec.blocks))


def _rounded_block(block: BlockCodec, dtype: str) -> BlockCodec:
    def as_read(array: np.ndarray) -> np.ndarray:
        return array.astype(dtype).astype(np.float32)

    predictor = block.predictor
    if predictor is not None:
        factors = tuple(as_read(factor) for factor in predictor.factors)
        predictor = replace(predictor, factors=factors, bias=as_read(predictor.bias))
    books = (
        replace(
            book,
            entries=as_read(book.entries),
            head=None if book.head is None else replace(book.head, entries=as_read(book.head.entries)),
        )
        for book in block.codebooks
    )
    return replace(block.with_books(books), predictor=predictor)


def write_codec(file: h5py.File, codec: Codec, dtype: str = "float32") -> None:
    """Create /codec: settings and checksum as attributes, entries and bases of every block as datasets."""
    codec = rounded(codec, dtype)
    group = file.create_group("codec")
    group.attrs.update({name: getattr(codec.config, name) for name in _TEXTS + _NUMBERS})
    for name in _OPTIONAL + _LISTS:
        if getattr(codec.config, name):
            group.attrs[name] = getattr(codec.config, name)
    for name in _COUNTS:
        if name in stored_fields(codec.config):
            group.attrs[name] = _as_array(getattr(codec.config, name), codec.config.n_books)
    if codec.config.has_maps:
        group.attrs["predict"] = codec.config.predict
    group.attrs["width"] = codec.blocks[0].codebooks[0].width
    for i, block in enumerate(codec.blocks):
        names = _datasets(codec.config.site)
        if codec.config.has_maps and block.predictor is None:  # it sends nothing
            group.create_group(str(i))
            continue
        for (name, subspace), book in zip(names, block.codebooks, strict=True):
            group.create_dataset(f"{i}/{name}", data=book.entries.astype(dtype))
            if book.basis is not None:
                item = group.create_dataset(f"{i}/{subspace}", data=book.basis)
                item.attrs["error_growth"] = book.error_growth
            if book.transform is not None:
                for part, array in zip(_TRANSFORM, book.transform, strict=True):
                    group.create_dataset(f"{i}/{name}_{part}", data=array)
            if book.head is not None:
                group.create_dataset(f"{i}/{name}_head", data=book.head.entries.astype(dtype))
            if book.bits is not None:
                group.create_dataset(f"{i}/{name}_bits", data=book.bits)
        for name, array in _predictor_arrays(block.predictor).items():
            group.create_dataset(f"{i}/{name}", data=array.astype(dtype))
        if block.predictor is not None:
            group[f"{i}/{_PREDICTOR[0]}"].attrs["keep"] = block.predictor.keep
    group.attrs["checksum"] = _checksum(codec)


def read_codec(file: h5py.File) -> Codec:
    """Read /codec. InputError if it contradicts itself or its checksum."""
    group = hdf5.group(file, "codec")
    config = read_settings(group)
    width = hdf5.integer(group, "width")
    require(len(group) > 0, f"{file.filename}: /codec has no blocks; calibrate again")
    config.check_blocks(len(group), f"{file.filename}: /codec")
    blocks = tuple(_read_block(hdf5.group(group, str(i)), config, width, i) for i in range(len(group)))
    codec = Codec(config, blocks)
    require(
        hdf5.text(group, "checksum") == _checksum(codec),
        f"{file.filename}: /codec is damaged or edited (its checksum differs); calibrate again",
    )
    return codec


def read_settings(group: h5py.Group) -> CodecConfig:
    """Of the group /codec."""
    texts = {name: hdf5.text(group, name) for name in (*_TEXTS, "predict") if name != "predict" or name in group.attrs}
    numbers = {
        name: hdf5.integer(group, name) for name in _NUMBERS + _OPTIONAL if name in _NUMBERS or name in group.attrs
    }
    counts = {name: hdf5.integers(group, name) for name in _COUNTS if name == "stages" or name in group.attrs}
    lists = {name: tuple(hdf5.integers(group, name).ravel().tolist()) for name in _LISTS if name in group.attrs}
    given: dict[str, Any] = texts | numbers | lists | {name: _as_counts(array) for name, array in counts.items()}
    return CodecConfig(**given)


def _as_array(counts: Counts, n_books: int) -> Any:
    """A number, or (L, codebooks) integers."""
    if isinstance(counts, int):
        return counts
    return np.array([one if isinstance(one, tuple) else (one,) * n_books for one in counts], np.int64)


def _as_counts(array: np.ndarray) -> Counts:
    """The same again; blocks whose codebooks have as many are one number."""
    if array.ndim == 0:
        return int(array)
    rows = np.atleast_2d(array).tolist()
    return tuple(row[0] if len(set(row)) == 1 else tuple(row) for row in rows)


def _read_block(group: h5py.Group, config: CodecConfig, width: int, i: int) -> BlockCodec:
    if config.has_maps and i == 0:
        return BlockCodec((no_codebook(config, width),))
    books = []
    for (name, subspace), part in zip(_datasets(config.site), config.of(i), strict=True):
        item = hdf5.dataset(group, name, DTYPES)
        wanted = part.rule.shape(part, width)
        fits = len(item.shape) == 3 and all(want in (-1, have) for want, have in zip(wanted, item.shape, strict=True))
        require(
            fits and item.size > 0,
            f"{group.file.filename}: {item.name} has shape {item.shape}, its settings say {wanted}; calibrate again",
        )
        books.append(
            Codebook(
                config.kind,
                hdf5.read(item, "float32"),
                width,
                *_read_subspace(group, subspace),
                _read_transform(group, name, width),
                _read_bits(group, name, item.shape[0]),
                _read_head(group, name, width, part),
                part.count if part.near and part.count else None,
            )
        )
    return BlockCodec(tuple(books), _read_predictor(group, width) if config.has_maps else None)


def _read_predictor(group: h5py.Group, width: int) -> Predictor:
    """Its factors, one or two, and its bias, as wide as the codebooks."""
    arrays = [hdf5.dataset(group, name, DTYPES) for name in _PREDICTOR if name in group]
    shapes = [item.shape for item in arrays]
    require(
        len(arrays) >= 2 and shapes[-1] == (width,),
        f"{group.file.filename}: {group.name} needs a predictor of width {width}, and has {shapes}; calibrate again",
    )
    *factors, bias = (hdf5.read(item, "float32") for item in arrays)
    return Predictor(tuple(factors), bias, hdf5.number(arrays[0], "keep"))


def _predictor_arrays(predictor: Predictor | None) -> dict[str, np.ndarray]:
    """By the names of their datasets."""
    if predictor is None:
        return {}
    return dict(
        zip((*_PREDICTOR[: len(predictor.factors)], _PREDICTOR[-1]), (*predictor.factors, predictor.bias), strict=True)
    )


def _read_transform(group: h5py.Group, name: str, width: int) -> Transform | None:
    if f"{name}_{_TRANSFORM[0]}" not in group:
        return None
    items = [hdf5.dataset(group, f"{name}_{part}", ("float32",)) for part in _TRANSFORM]
    sane = all(item.size <= width * width for item in items)
    require(sane, f"{group.file.filename}: {items[0].name} is larger than vectors of {width}; calibrate again")
    return Transform(*(hdf5.read(item, "float32") for item in items))


def _read_head(group: h5py.Group, name: str, width: int, config: CodecConfig) -> Codebook | None:
    if f"{name}_head" not in group:
        return None
    item = hdf5.dataset(group, f"{name}_head", DTYPES)
    sane = len(item.shape) == 3 and item.shape[0] <= HEAD_STAGES and item.shape[1:] == (config.codebook_size, width)
    require(sane, f"{group.file.filename}: {item.name} has shape {item.shape} for vectors of {width}; calibrate again")
    return Codebook(HEAD, hdf5.read(item, "float32"), width)


def _read_bits(group: h5py.Group, name: str, n_codes: int) -> np.ndarray | None:
    if f"{name}_bits" not in group:
        return None
    item = hdf5.dataset(group, f"{name}_bits", ("uint8",))
    good = item.shape == (n_codes,)
    require(good, f"{group.file.filename}: {item.name} has shape {item.shape}, not ({n_codes},); calibrate again")
    return hdf5.read(item, "uint8")


def _read_subspace(group: h5py.Group, name: str) -> tuple[np.ndarray | None, float]:
    """Basis and error growth; (None, 0) where the codebook is searched exactly."""
    if name not in group:
        return None, 0.0
    item = hdf5.dataset(group, name, ("float32",))
    return hdf5.read(item, "float32"), hdf5.number(item, "error_growth")


def _datasets(site: str) -> tuple[tuple[str, str], ...]:
    """Per codebook, the names of its entries and of its subspace."""
    return (("keys", "keys_subspace"), ("values", "values_subspace")) if site == "kv" else (("codebook", "subspace"),)


def _checksum(codec: Codec) -> str:
    """sha256 over what is stored; unlike `Codec.digest` it stays when settings are added to `CodecConfig`."""
    config, first = codec.config, codec.blocks[0].codebooks[0]
    names = _TEXTS + _NUMBERS + tuple(name for name in _OPTIONAL + _COUNTS if name in stored_fields(config))
    sha = hashlib.sha256(f"{[getattr(config, name) for name in names]} {first.width}".encode())
    sha.update(config.predict.encode() if config.has_maps else b"")
    for block in codec.blocks:
        for book in block.codebooks:
            for array in (book.entries, book.basis, *(book.transform or ())):
                sha.update(b"" if array is None else array.astype("<f4", copy=False).data)
            sha.update(b"" if book.bits is None else book.bits.data)
            sha.update(b"" if book.head is None else book.head.entries.astype("<f4", copy=False).data)
        for array in () if block.predictor is None else block.predictor.arrays:
            sha.update(repr(array.shape).encode())
            sha.update(array.astype("<f4", copy=False).data)
    return sha.hexdigest()


def check_codec(codec: Codec, config: ModelConfig, path: str | Path) -> None:
    """InputError unless the codebooks are as many and as wide as the model's blocks."""
    width = config.d_kv if codec.config.site == "kv" else config.d_model
    have = (len(codec.blocks), codec.blocks[0].codebooks[0].width)
    need = (config.n_layers, width)
    require(have == need, f"{path}: codebooks for (blocks, width) {have}, the model has {need}; calibrate again")


def write_codebooks(
    path: str | Path, codec: Codec, base_digest: str, provenance: dict[str, str], dtype: str = "float32"
) -> None:
    """Write a codebook file for the model whose `ModelFile.digest` is `base_digest`, with entries stored as `dtype`."""
    with hdf5.writing(path) as file:
        file.attrs.update({"format": hdf5.CODEBOOKS, "version": hdf5.VERSION, "base_digest": base_digest})
        write_codec(file, codec, dtype)
        write_provenance(file, provenance)


def read_codebooks(path: str | Path, base_digest: str) -> Codec:
    """Read a codebook file; InputError if it cannot be read or belongs to another model."""
    with hdf5.reading(path) as file:
        hdf5.check_format(file, hdf5.CODEBOOKS)
        require(
            hdf5.text(file, "base_digest") == base_digest,
            f"{path} holds codebooks of another model; calibrate this one (`astra-mpi calibrate --codebook-only`)",
        )
        codec = read_codec(file)
        checksum.require_whole(file)
        return codec
