"""A Hugging Face folder -> a model file's contents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.folder import Joined, Tensor, check_adapter, load_object, open_weights, sha256
from astra_mpi.checkpoint.found import checked_folder
from astra_mpi.checkpoint.tensors import Tensors, rounding
from astra_mpi.config import require
from astra_mpi.convert.generation import generation
from astra_mpi.convert.images import image_preprocessing, image_size
from astra_mpi.convert.sentence import SentenceEncoder, read_encoder
from astra_mpi.convert.text import read_text_settings
from astra_mpi.device.formats import format_of
from astra_mpi.device.weights import Made, Weights, narrowed
from astra_mpi.errors import InputError, some
from astra_mpi.files.modelfile import ModelFile, read_model, weight_shapes
from astra_mpi.files.provenance import provenance
from astra_mpi.models import CHECKPOINTS, FAMILIES
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.decoder import Decoder
from astra_mpi.models.encoders.embedders import EMBEDDERS
from astra_mpi.models.hf import Source, arranged, to_canonical

#: settings of mixtures of experts
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok")


def convert(source: str | Path, dtype: str = "float32", command: str = "convert") -> tuple[ModelFile, list[str]]:
    """Read config.json, safetensors, tokenizer, pooling and image preprocessing of a Hugging Face folder.

    dtype: how `write_model` will store the weights. Returns the model and notes for the user. InputError on a folder
    that is incomplete, damaged or of an unknown family.
    """
    source = checked_folder(source)
    encoder = read_encoder(source)
    folder = encoder.transformer if encoder is not None else source
    check_adapter(source)
    check_adapter(folder)
    return assembled(Checkpoint(source, folder, encoder, *open_weights(folder)), dtype, command)


@dataclass(frozen=True)
class Checkpoint:
    """What a model is made of."""

    source: Path  # what the user gave
    folder: Path  # with config.json, and what there is of tokenizer and generation settings
    encoder: SentenceEncoder | None
    tensors: Mapping[str, Tensor]  # by Hugging Face name
    files: Sequence[Path]  # that hold the tensors


def assembled(checkpoint: Checkpoint, dtype: str, command: str, keeps: bool = False) -> tuple[ModelFile, list[str]]:
    """`convert` for what was found, whatever it was found in.

    keeps: every weight is stored as what keeps its tensor's numbers; dtype is then that of most.
    """
    source, folder, encoder, tensors = checkpoint.source, checkpoint.folder, checkpoint.encoder, checkpoint.tensors
    config, hf, named = _config(folder / "config.json", tensors, encoder)
    weights, notes = _weights(folder, config, hf, named, encoder, keeps)
    tokenizer, preprocess, more_notes, left_aside = _inputs(folder, config, encoder)
    facts = {
        "source": source.resolve().name,
        "source_sha256": json.dumps({_inside(path, folder): sha256(path) for path in checkpoint.files}),
        "left_aside": json.dumps(left_aside),
    }
    model = ModelFile(
        config,
        weights,
        tokenizer=tokenizer,
        preprocess=preprocess,
        provenance=provenance(command, **facts),
        stored_dtype=dtype,
        keeps=keeps,
    )
    notes = hf.assumed + hf.notes + named.notes + rounding(hf, tensors) + notes
    return model, notes + more_notes


def _inside(path: Path, folder: Path) -> str:
    """A file's name, with the folders inside of `folder` that it is in."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def restore(source: str | Path, dtype: str, command: str = "convert") -> tuple[ModelFile, list[str]]:
    """A model file, to be written with its weights as `dtype`; codebooks and all else stay. InputError."""
    model = read_model(source)
    made = model.provenance | {"convert": command}
    notes = []
    if model.codec is not None and dtype != model.stored_dtype:
        notes.append(f"its codebooks were fitted to the {model.stored_dtype} model; calibrate again to fit this one")
    return dataclasses.replace(model, provenance=made, stored_dtype=dtype, keeps=False), notes


def _config(
    path: Path, tensors: Mapping[str, Tensor], encoder: SentenceEncoder | None
) -> tuple[Any, HFConfig, Tensors]:
    """-> (config, what it was read from, the tensors by its family's names)."""
    values = load_object(path)
    name = str(values.get("model_type"))
    if name not in CHECKPOINTS:
        experts = sorted(key for key in values if key in _EXPERTS)
        require(
            not (experts or name in ("mixtral", "dbrx") or "moe" in name),
            f"{path}: model_type '{name}' is a mixture of experts ({', '.join(experts) or 'as its name says'}), which"
            " is not supported; give a model whose MLPs are one each",
        )
        raise InputError(f"{path}: model_type '{name}' is not supported; use one of {', '.join(CHECKPOINTS)}")
    kind: Any = CHECKPOINTS[name] if encoder is None else EMBEDDERS.get(name, CHECKPOINTS[name])
    with _said_of(path):
        hf = HFConfig(values, kind.reference)
        hf.bare = encoder is not None
    named = Tensors(path.parent, kind, tensors)
    named.check_plain()
    _check_layers(path.parent, hf, hf.values.get(kind.reference.layers_key), tensors)
    with _said_of(path):
        config = kind.from_hf(hf, named)
        hf.check_rest()
    if config.family == "vit":
        config = dataclasses.replace(config, image_size=image_size(path.parent, config, kind.takes_any_size))
    if encoder is not None and isinstance(config, BertConfig):
        config = dataclasses.replace(config, **encoder.config_fields(config.d_model))
    elif encoder is not None:
        raise InputError(
            f"{encoder.path} makes embeddings with a {name} model (pooling {encoder.pooling}), which is not supported; "
            f"only with text encoders; remove {encoder.path.name} to take the model without it"
        )
    return config, hf, named


@contextmanager
def _said_of(path: Path) -> Iterator[None]:
    """The file's name before what is said of its contents."""
    try:
        yield
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc


def _check_layers(folder: Path, hf: HFConfig, n_layers: Any, tensors: Mapping[str, Tensor]) -> None:
    """InputError on more blocks than there are tensors, before anything is made for each of them."""
    fits = type(n_layers) is not int or n_layers <= len(tensors)
    require(fits, f"{folder} has too few tensors for {hf.called(hf.reference.layers_key)} = {n_layers}")


def _weights(
    folder: Path, config: Any, hf: HFConfig, tensors: Tensors, encoder: SentenceEncoder | None, keeps: bool
) -> tuple[Weights, list[str]]:
    """-> (weights by canonical name, read when they are asked for; notes)."""
    _check_layers(folder, hf, config.n_layers, tensors.files)
    dense = encoder.dense if encoder is not None else ()
    without = {"dense_widths": (), "dense_activations": (), "embedding_size": 0} if dense else {}
    sources = tensors.family.hf_weights(dataclasses.replace(config, **without))
    zeros = [name for name, source in sources.items() if not source.name]
    asked = {name: (source.name, *source.more) for name, source in sources.items() if source.name}
    times = {name: source.times for name, source in sources.items() if source.times}
    found = {one: tensors.find(one) for one in chain(*asked.values(), times.values())}
    missing = sorted(name for name, tensor in found.items() if tensor is None)
    have = {name: tensor for name, tensor in found.items() if tensor is not None}
    left = tensors.unused(list(have.values()))
    require(
        not missing,
        f"{folder} has no tensor {some(missing)}, which its config.json asks for ({tensors.blame(missing, hf)});"
        f" it has {len(left)} others{': ' * bool(left)}{some(left, 3)}; the folder is incomplete, or config.json is of"
        " another model",
    )
    foreign = tensors.in_blocks(left)
    require(
        not foreign,
        f"{folder} has tensors in its blocks that config.json does not ask for: {some(foreign)}"
        f" ({tensors.blame(foreign, hf)}); answers without them would be wrong, so it is not a"
        f" {hf.values.get('model_type')} model as known here",
    )
    try:
        present = {
            name: have[names[0]] if len(names) == 1 else Joined.of([have[one] for one in names])
            for name, names in asked.items()
        }
    except ValueError as exc:
        raise InputError(f"{folder}: tensors of one kind differ in shape; the folder is damaged") from exc
    for i, layer in enumerate(dense):
        for name, (source, tensor) in layer.tensors(i).items():
            sources[name] = source
            if tensor is None:
                zeros.append(name)
            else:
                present[name] = tensor
    shapes = weight_shapes(config)
    assumed = f" ({'; '.join(hf.assumed)})" if hf.assumed else ""
    for name, tensor in present.items():
        _check_tensor(name, shapes[name], sources[name], tensor, assumed)
        if name in times:
            _check_tensor(name, shapes[name][-1:], Source(times[name]), have[times[name]], assumed)

    def made(name: str) -> Any:
        if name not in present:
            return np.zeros(shapes[name], np.float32)
        tensor, shape, source = present[name], shapes[name], sources[name]
        kept = tensor.kept(name, shape, source) if keeps else None
        if kept is not None:
            return kept
        factors = have[times[name]].read() if name in times else None
        wide = to_canonical(name, tensor.read(), shape, source, factors)
        if not keeps:
            return wide
        kind = format_of(name, shape, tensor.kept_as)
        return narrowed(name, wide, kind.dtype if kind.bits >= 16 else "float16")  # blocks that are not whole any more

    weights = Made([*present, *zeros], made)
    notes = [f"{len(left)} tensors that this model does not use were left out: {some(left)}"] if left else []
    return weights, notes


def _check_tensor(name: str, shape: tuple[int, ...], source: Source, tensor: Tensor, why: str) -> None:
    """InputError, which ends in `why`, unless weight `name` can be made of the tensor; only its description is looked
    at."""
    tensor.check()
    wrong = f"{tensor.path}: tensor {tensor.name} has shape {tensor.shape}, which config.json contradicts{why}"
    require(source.fits(tensor.shape, shape), wrong)
    try:
        arranged(name, np.broadcast_to(np.float32(0), tensor.shape), shape, source)
    except ValueError as exc:
        raise InputError(wrong) from exc


def _inputs(
    folder: Path, config: Any, encoder: SentenceEncoder | None
) -> tuple[str | None, dict[str, Any] | None, list[str], list[str]]:
    """-> (tokenizer, preprocess, notes, keys left aside)."""
    if config.family == "vit":
        try:
            images, notes = image_preprocessing(folder, config.image_size, config.channels)
            return None, images.as_dict(), notes, []
        except InputError as exc:
            return None, None, [f"{exc}; the model will take only float32 images that are already normalised"], []
    text = read_text_settings(folder, config, encoder)
    preprocess = dict(text.preprocess)
    if issubclass(FAMILIES[config.family], Decoder):
        preprocess["end_tokens"], asked = generation(folder, config.vocab_size)
        text.notes.extend(asked)
    return text.tokenizer, preprocess, text.notes, text.left_aside
