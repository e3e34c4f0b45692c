"""The model file (docs/model-file.md): one HDF5 file with everything a model needs to run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi import hdf5
from astra_mpi.codec.codebook import Codec
from astra_mpi.codecfile import check_codec, read_codec, write_codec
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.models import FAMILIES
from astra_mpi.provenance import read_provenance, write_provenance

DTYPES = ("float32", "float16")


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds. Weights are float32 in memory whatever the storage."""

    config: Any  # a family's config (`astra_mpi.models.FAMILIES[...].Config`)
    weights: dict[str, np.ndarray]  # canonical name -> float32, shapes as the family's `weight_shapes`
    codec: Codec | None = None
    tokenizer: str | None = None  # contents of a tokenizer.json
    preprocess: dict[str, Any] | None = None  # `max_tokens` and `end_tokens` of text; size, mean, std, ... of images
    provenance: dict[str, str] = field(default_factory=dict)
    digest: str = ""  # identity: sha256 over family, config and weights; `read_model` fills it in
    stored_dtype: str = "float32"  # storage of the weights
    codec_dtype: str = "float32"  # storage of the codebooks' entries, when written


def read_model(path: str | Path) -> ModelFile:
    """Read and check a model file. InputError, with the file, the part and the cure, on anything that does not fit."""
    with hdf5.reading(path) as file:
        config, config_json = read_config(file)
        weights, stored_dtype = _read_weights(file, config)
        digest = _digest(config.family, config_json, weights.items())
        require(
            hdf5.text(file, "digest") == digest,
            f"{path} is damaged or edited (its weights or config differ from its digest); copy or convert it again",
        )
        codec = read_codec(file) if "codec" in file else None
        if codec is not None:
            check_codec(codec, config, path)
        return ModelFile(
            config,
            weights,
            codec,
            _read_tokenizer(file),
            read_preprocess(file),
            read_provenance(file),
            digest,
            stored_dtype,
        )


def read_config(file: h5py.File) -> tuple[Any, str]:
    """-> (config, its JSON as stored) of an open model file; InputError on another format, version or family."""
    hdf5.check_format(file, hdf5.MODEL)
    family, stored = hdf5.text(file, "family"), hdf5.text(file, "config")
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"{file.filename}: unknown model family '{family}' (known: {known}); upgrade astra-mpi")
    try:
        config = FAMILIES[family].Config.from_dict(_json_object(stored))
    except (InputError, ValueError) as exc:
        raise InputError(f"{file.filename}: its config does not describe a {family} model ({exc})") from exc
    return config, stored


def weight_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights by its config."""
    family: Any = FAMILIES[config.family]
    return family.weight_shapes(config)


def _read_weights(file: h5py.File, config: Any) -> tuple[dict[str, np.ndarray], str]:
    group = hdf5.group(file, "weights")
    # before the names of so many blocks are spelled out
    require(
        config.n_layers <= len(group), f"{file.filename}: /weights has too few weights for {config.n_layers} blocks"
    )
    shapes = weight_shapes(config)
    _check_names(file.filename, shapes, group)
    items = {name: hdf5.dataset(group, name, DTYPES) for name in shapes}
    for name, item in items.items():
        _check_shape(file.filename, name, item.shape, shapes[name])
    weights = {name: hdf5.read(item, "float32") for name, item in items.items()}
    for name, array in weights.items():
        _check_finite(file.filename, name, array)
    return weights, str(max((item.dtype for item in items.values()), key=lambda dtype: dtype.itemsize))


def _check_names(path: str | Path, shapes: Mapping[str, Any], found: Iterable[str]) -> None:
    missing, extra = sorted(set(shapes) - set(found)), sorted(set(found) - set(shapes))
    require(not missing, f"{path}: weight {missing[0] if missing else ''} is missing; convert the model again")
    require(not extra, f"{path}: weight {extra[0] if extra else ''} is unknown to its config; convert the model again")


def _check_shape(path: str | Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    require(found == wanted, f"{path}: weight {name} has shape {found}, its config says {wanted}; convert it again")


def _check_finite(path: str | Path, name: str, array: np.ndarray) -> None:
    require(bool(np.isfinite(array).all()), f"{path}: weight {name} has NaN or infinite values; repair the source")


def _read_tokenizer(file: h5py.File) -> str | None:
    if "tokenizer" not in file:
        return None
    item = hdf5.dataset(hdf5.group(file, "tokenizer"), "json", ("uint8",))
    try:
        return hdf5.read(item, "uint8").tobytes().decode()
    except UnicodeDecodeError as exc:
        raise InputError(f"{file.filename}: /tokenizer/json is not UTF-8; convert the model again") from exc


def read_preprocess(file: h5py.File) -> dict[str, Any] | None:
    """/preprocess of an open model file, or None."""
    if "preprocess" not in file:
        return None
    stored = hdf5.text(hdf5.group(file, "preprocess"), "json")
    try:
        return _json_object(stored)
    except ValueError as exc:
        raise InputError(f"{file.filename}: /preprocess is no JSON object ({exc}); convert the model again") from exc


def _json_object(stored: str) -> dict[str, Any]:
    value = json.loads(stored)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def write_model(path: str | Path, model: ModelFile) -> str:
    """Write a model file and return its digest. The file appears whole or not at all.

    InputError if the weights do not fit the config, are not finite, or exceed `stored_dtype`.
    """
    config = model.config
    shapes = weight_shapes(config)
    _check_names(path, shapes, model.weights)
    for name, array in model.weights.items():
        _check_shape(path, name, array.shape, shapes[name])
        _check_finite(path, name, array)
    if model.codec is not None:
        check_codec(model.codec, config, path)
    stored = {name: _as_stored(name, array, model.stored_dtype) for name, array in sorted(model.weights.items())}
    config_json = json.dumps(config.as_dict(), sort_keys=True)
    digest = _digest(config.family, config_json, stored.items())
    with hdf5.writing(path) as file:
        file.attrs.update({"format": hdf5.MODEL, "version": hdf5.VERSION, "digest": digest})
        file.attrs.update({"family": config.family, "config": config_json})
        group = file.create_group("weights")
        for name, array in stored.items():
            group.create_dataset(name, data=array)
        if model.codec is not None:
            write_codec(file, model.codec, model.codec_dtype)
        if model.tokenizer is not None:
            file["tokenizer/json"] = np.frombuffer(model.tokenizer.encode(), np.uint8)
        if model.preprocess is not None:
            file.create_group("preprocess").attrs["json"] = json.dumps(model.preprocess, sort_keys=True)
        write_provenance(file, model.provenance)
    return digest


def _as_stored(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype)
    require(bool(np.isfinite(stored).all()), f"weight {name} has values too large for {dtype}; use --dtype float32")
    return stored


def _digest(family: str, config_json: str, weights: Iterable[tuple[str, np.ndarray]]) -> str:
    """sha256 over family, config and the float32 values of the weights by name: the same for every storage dtype."""
    sha = hashlib.sha256(f"{family}\n{config_json}\n".encode())
    for name, array in sorted(weights, key=lambda item: item[0]):
        sha.update(f"{name} {array.shape}\n".encode())
        sha.update(np.ascontiguousarray(array, "<f4").data)
    return sha.hexdigest()
