"""The model file (docs/reference/model-file.md): one HDF5 file with everything a model needs to run."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from astra_mpi.codec.codec import Codec
from astra_mpi.config import require
from astra_mpi.device.weights import Weights
from astra_mpi.errors import InputError
from astra_mpi.files import checksum, hdf5
from astra_mpi.files.codecfile import check_codec, read_codec, write_codec
from astra_mpi.files.provenance import read_provenance, write_provenance
from astra_mpi.files.weightfile import Held, check_names, read_weights, write_weights
from astra_mpi.models import FAMILIES


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file holds."""

    config: Any  # a family's config (`astra_mpi.models.FAMILIES[...].Config`)
    weights: Weights  # by canonical name, shapes as the family's `weight_shapes`: float32, or narrow matrices
    codec: Codec | None = None
    tokenizer: str | None = None  # contents of a tokenizer.json
    preprocess: dict[str, Any] | None = None  # `max_tokens` and `end_tokens` of text; size, mean, std, ... of images
    provenance: dict[str, str] = field(default_factory=dict)
    digest: str = ""  # identity: sha256 over family, config and weights; `read_model` fills it in
    stored_dtype: str = "float32"  # of matrices, on disk (`astra_mpi.device.formats`)
    keeps: bool = False  # whether weights are written as what they are, and not all as `stored_dtype`
    codec_dtype: str = "float32"  # storage of the codebooks' entries, when written


def read_model(path: str | Path, share: tuple[int, int] = (0, 1), held: Held | None = None) -> ModelFile:
    """Read and check a model file. InputError, with the file, the part and the cure, on anything that does not fit.

    Matrices are mapped and stay in their stored type. share = (r, n): check the contents of every n-th weight only.
    held: which weights are read, by name; all.
    """
    with hdf5.reading(path) as file:
        config, config_json = read_config(file)
        # before the names of so many blocks are spelled out
        n_found, few = len(hdf5.group(file, "weights")), f"/weights has too few weights for {config.n_layers} blocks"
        require(config.n_layers <= n_found, f"{path}: {few}")
        weights, stored_dtype = read_weights(
            file, _head(config.family, config_json), weight_shapes(config), share, held
        )
        codec = read_codec(file) if "codec" in file else None
        if codec is not None:
            check_codec(codec, config, path)
        model = ModelFile(
            config,
            weights,
            codec,
            _read_tokenizer(file),
            read_preprocess(file),
            read_provenance(file),
            hdf5.text(file, "digest"),
            stored_dtype,
            keeps=True,
        )
        checksum.require_whole(file)  # last: what is wrong is named above, if it can be
        return model


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


def is_tied(path: str | Path) -> bool:
    """Whether the head of the model in a file is its word embedding."""
    with hdf5.reading(path) as file:
        return bool(getattr(read_config(file)[0], "tied", False))


def weight_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's weights by its config."""
    family: Any = FAMILIES[config.family]
    return family.weight_shapes(config)


def _head(family: str, config_json: str) -> str:
    """What digest and manifest begin with."""
    return f"{family}\n{config_json}\n"


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
    config, shapes = model.config, weight_shapes(model.config)
    check_names(path, shapes, model.weights)
    if model.codec is not None:
        check_codec(model.codec, config, path)
    config_json = json.dumps(config.as_dict(), sort_keys=True)
    with hdf5.writing(path, aligned=True) as file:
        file.attrs.update({"format": hdf5.MODEL, "version": hdf5.VERSION})
        file.attrs.update({"family": config.family, "config": config_json})
        dtype = None if model.keeps else model.stored_dtype
        write_weights(file, _head(config.family, config_json), model.weights, shapes, dtype)
        if model.codec is not None:
            write_codec(file, model.codec, model.codec_dtype)
        if model.tokenizer is not None:
            file["tokenizer/json"] = np.frombuffer(model.tokenizer.encode(), np.uint8)
        if model.preprocess is not None:
            file.create_group("preprocess").attrs["json"] = json.dumps(model.preprocess, sort_keys=True)
        write_provenance(file, model.provenance)
        return hdf5.text(file, "digest")
