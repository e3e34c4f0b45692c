"""A Hugging Face folder -> a model file's contents."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi import hf_settings
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.hf_folder import Tensor, check_adapter, load_settings, open_weights, sha256
from astra_mpi.hf_found import checked_folder
from astra_mpi.hf_images import image_preprocessing
from astra_mpi.modelfile import ModelFile, read_model, weight_shapes
from astra_mpi.models import FAMILIES
from astra_mpi.models.hf import Source, arranged, to_canonical
from astra_mpi.provenance import provenance
from astra_mpi.weightfile import some
from astra_mpi.weights import Made, Weights


def convert(source: str | Path, dtype: str = "float32", command: str = "convert") -> tuple[ModelFile, list[str]]:
    """Read config.json, safetensors, tokenizer, pooling and image preprocessing of a Hugging Face folder.

    dtype: how `write_model` will store the weights. Returns the model and notes for the user. InputError on a folder
    that is incomplete, damaged or of an unknown family.
    """
    source = checked_folder(source)
    modules = hf_settings.sentence_modules(source)
    folder = modules.get("Transformer", source)
    check_adapter(source)
    check_adapter(folder)
    tensors, files = open_weights(folder)
    family, config = _config(folder / "config.json", tensors, modules)
    weights, notes = _weights(folder, family, config, tensors)
    tokenizer, preprocess, more_notes = _inputs(folder, config)
    facts = {
        "source": source.resolve().name,
        "source_sha256": json.dumps({path.relative_to(folder).as_posix(): sha256(path) for path in files}),
    }
    model = ModelFile(
        config,
        weights,
        tokenizer=tokenizer,
        preprocess=preprocess,
        provenance=provenance(command, **facts),
        stored_dtype=dtype,
    )
    return model, notes + more_notes


def restore(source: str | Path, dtype: str, command: str = "convert") -> tuple[ModelFile, list[str]]:
    """A model file, to be written with its weights as `dtype`; codebooks and all else stay. InputError."""
    model = read_model(source)
    made = model.provenance | {"convert": command}
    notes = []
    if model.codec is not None and dtype != model.stored_dtype:
        notes.append(f"its codebooks were fitted to the {model.stored_dtype} model; calibrate again to fit this one")
    return dataclasses.replace(model, provenance=made, stored_dtype=dtype), notes


def _config(path: Path, tensors: dict[str, Tensor], modules: dict[str, Path]) -> tuple[Any, Any]:
    """-> (family, config)."""
    hf = load_settings(path)
    name = str(hf.get("model_type"))
    if name not in FAMILIES:
        raise InputError(f"{path}: model_type '{name}' is not supported; use one of {', '.join(FAMILIES)}")
    family: Any = FAMILIES[name]
    try:
        config = family.from_hf(hf)
    except KeyError as exc:
        raise InputError(f"{path} has no key {exc}; download it again") from exc
    except (TypeError, ValueError, AttributeError) as exc:
        raise InputError(f"{path} has a value of the wrong type ({exc}); download it again") from exc
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    if name == "bert":
        has_pooler = _find(tensors, family, "pooler.dense.weight") is not None
        config = dataclasses.replace(config, has_pooler=has_pooler, **hf_settings.pooling(modules))
    return family, config


def _weights(folder: Path, family: Any, config: Any, tensors: dict[str, Tensor]) -> tuple[Weights, list[str]]:
    """-> (weights by canonical name, read when they are asked for; notes)."""
    # before the names of so many blocks are spelled out
    require(
        config.n_layers <= len(tensors), f"{folder} has too few tensors for {config.n_layers} blocks; download it again"
    )
    sources = family.hf_weights(config)
    found = {name: _find(tensors, family, source.name) for name, source in sources.items()}
    missing = sorted({sources[name].name for name, tensor in found.items() if tensor is None})
    require(not missing, f"{folder} has no tensor {some(missing)}, which its config.json asks for; download it again")
    present = {name: tensor for name, tensor in found.items() if tensor is not None}
    unused = set(tensors) - {tensor.name for tensor in present.values()}
    left = sorted(name for name in unused if not name.endswith(family.hf_constants))
    foreign = [name for name in left if name.removeprefix(family.hf_prefix).startswith(family.hf_blocks)]
    require(
        not foreign,
        f"{folder} has tensors in its blocks that config.json does not ask for: {some(foreign)};"
        f" answers without them would be wrong, so it is not a {config.family} model as known here",
    )
    shapes = weight_shapes(config)
    for name, tensor in present.items():
        _check_tensor(name, shapes[name], sources[name], tensor)
    weights = Made(present, lambda name: to_canonical(name, present[name].read(), shapes[name], sources[name]))
    notes = [f"{len(left)} tensors that this model does not use were left out: {some(left)}"] if left else []
    return weights, notes


def _check_tensor(name: str, shape: tuple[int, ...], source: Source, tensor: Tensor) -> None:
    """InputError unless weight `name` can be made of the tensor; only its description is looked at."""
    tensor.check()
    wrong = f"{tensor.path}: tensor {tensor.name} has shape {tensor.shape}, which config.json contradicts"
    require(math.prod(tensor.shape) == math.prod(shape) * source.n_parts, wrong)
    try:
        arranged(name, np.broadcast_to(np.float32(0), tensor.shape), shape, source)
    except ValueError as exc:
        raise InputError(wrong) from exc


def _find(tensors: dict[str, Tensor], family: Any, name: str) -> Tensor | None:
    """A tensor by its Hugging Face name, with or without the family's prefix, or as TensorFlow once called it."""
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    for candidate in (family.hf_prefix + name, name, family.hf_prefix + old, old):
        if candidate in tensors:
            return tensors[candidate]
    return None


def _inputs(folder: Path, config: Any) -> tuple[str | None, dict[str, Any] | None, list[str]]:
    """-> (tokenizer, preprocess, notes)."""
    if config.family == "vit":
        try:
            images, notes = image_preprocessing(folder, config.image_size, config.channels)
            return None, images.as_dict(), notes
        except InputError as exc:
            return None, None, [f"{exc}; the model will take only float32 images that are already normalised"]
    tokenizer = hf_settings.tokenizer(folder, config.vocab_size)
    notes = []
    if tokenizer is None:
        notes.append(
            f"{folder} has no tokenizer.json, so the model will take only token ids; "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...) makes one"
        )
    preprocess: dict[str, Any] = {"max_tokens": hf_settings.max_tokens(folder, config.max_positions)}
    if FAMILIES[config.family].causal:
        preprocess["end_tokens"] = hf_settings.end_tokens(folder, config.vocab_size)
    return tokenizer, preprocess, notes
