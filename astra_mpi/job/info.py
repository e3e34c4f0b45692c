"""What a file holds, without reading its weights; whether it is whole, which reads all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import h5py

from astra_mpi.convert.text import usage
from astra_mpi.files import checksum, hdf5
from astra_mpi.files.codecfile import read_codec
from astra_mpi.files.modelfile import read_config, read_model, read_preprocess, weight_shapes
from astra_mpi.files.provenance import read_provenance
from astra_mpi.files.weightfile import stored_dtype


def describe(path: str | Path) -> dict[str, Any]:
    """A model, codebook or results file as JSON types. InputError on any other file."""
    with hdf5.reading(path) as file:
        kind = file.attrs.get("format")
        facts = {"path": str(path), "format": str(kind), "file_bytes": Path(path).stat().st_size}
        if kind == hdf5.RESULTS:
            return facts | _results(file)
        if kind == hdf5.CODEBOOKS:
            hdf5.check_format(file, hdf5.CODEBOOKS)
            return facts | {"base_digest": hdf5.text(file, "base_digest")} | _codec(file) | _provenance(file)
        return facts | _model(file) | _codec(file) | _provenance(file)


def check_contents(path: str | Path) -> str:
    """Read all of a file and compare it with its checksums, those of weights too.

    -> "whole", or that it has none. InputError if it is not what was written.
    """
    with hdf5.reading(path) as file:
        checksum.require_whole(file)
        known, kind = checksum.NAME in file.attrs, file.attrs.get("format")
    if kind == hdf5.MODEL:
        read_model(path)
    return "whole" if known else "no checksum: written by an earlier version"


def _model(file: h5py.File) -> dict[str, Any]:
    config, _ = read_config(file)
    weights = [item for item in _members(hdf5.group(file, "weights")) if isinstance(item, h5py.Dataset)]
    scales = _members(hdf5.group(file, "scales")) if "scales" in file else ()
    return {
        "family": config.family,
        "config": config.as_dict(),
        "digest": hdf5.text(file, "digest"),
        "parameters": sum(prod(shape) for shape in weight_shapes(config).values()),
        "weight_bytes": sum(item.nbytes for item in weights) + sum(item.nbytes for item in scales),
        "dtypes": sorted({stored_dtype(item) for item in weights}),
        "tokenizer": "tokenizer" in file,
        "preprocess": read_preprocess(file),
        "usage": usage_of(config, read_preprocess(file), "tokenizer" in file, read_provenance(file)),
    }


def usage_of(
    config: Any, preprocess: Mapping[str, Any] | None, tokenizer: bool, provenance: Mapping[str, str]
) -> dict[str, str]:
    """How texts become embeddings or tokens, in words; {} for models of images."""
    try:
        aside = json.loads(provenance.get("left_aside", "[]"))
    except (ValueError, RecursionError):
        aside = []
    return usage(config, preprocess, tokenizer, [str(entry) for entry in aside] if isinstance(aside, list) else [])


def _codec(file: h5py.File) -> dict[str, Any]:
    if "codec" not in file:
        return {"codec": None}
    codec = read_codec(file)
    config = codec.config
    books = [book for block in codec.blocks for book in block.codebooks]
    return {
        "codec": config.as_dict()
        | {
            "blocks": len(codec.blocks),
            "codes_per_token": max(block.n_codes for block in codec.blocks),
            "bits_per_token_per_block": config.mean_bits(len(codec.blocks)),
            "bits_of_blocks": codec.block_bits,
            "bytes": sum(book.entries.nbytes for book in books),
            "subspace_widths": [None if book.basis is None else book.basis.shape[1] for book in books],
            "subspace_error_growth": max(book.error_growth for book in books),
            "digest": codec.digest,
        }
        | ({"more_bits_of_near": [config.near_bits(i) for i in range(len(codec.blocks))]} if config.near else {})
        | ({"predictor_ranks": [b.predictor.rank for b in codec.blocks if b.predictor]} if config.has_maps else {})
    }


def _provenance(file: h5py.File) -> dict[str, Any]:
    return {"provenance": {name: _plain(value) for name, value in read_provenance(file).items()}}


def _results(file: h5py.File) -> dict[str, Any]:
    attributes = {name: _plain(value) for name, value in file.attrs.items() if name != "format"}
    return {"datasets": dict(_datasets(file)), "attributes": attributes}


def _members(group: h5py.Group) -> Iterator[h5py.Group | h5py.Dataset]:
    """What lies in a group itself; links to other places are left alone."""
    return (group[name] for name in group if isinstance(group.get(name, getlink=True), h5py.HardLink))


def _datasets(group: h5py.Group) -> Iterator[tuple[str, str]]:
    """Names and "dtype (shape)" of the datasets below a group."""
    for item in _members(group):
        if isinstance(item, h5py.Group):
            yield from _datasets(item)
        else:
            yield item.name, f"{item.dtype} {item.shape}"


def _plain(value: Any) -> Any:
    """An attribute as JSON type; text that is JSON itself is unfolded."""
    if not isinstance(value, str):
        return value.tolist() if hasattr(value, "tolist") else str(value)
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
