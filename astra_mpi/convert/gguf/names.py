"""Tensors of a GGUF file by their Hugging Face names, arranged as there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from typing import Any

from astra_mpi.config import require
from astra_mpi.convert.gguf.architectures import Architecture
from astra_mpi.convert.gguf.arrange import arranged_shape
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.rope import FREQUENCIES, LONG, SHORT
from astra_mpi.convert.gguf.tensors import GGUFTensor
from astra_mpi.files.weightfile import some

_BLOCK = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_OUTER = re.compile(r"(.+)\.(weight|bias)")
#: tensors that became settings of config.json
_SETTINGS = (FREQUENCIES, LONG, SHORT)


def hf_tensors(
    metadata: Metadata, kind: Architecture, config: dict[str, Any], tensors: dict[str, GGUFTensor]
) -> dict[str, GGUFTensor]:
    """InputError names tensors that are missing, and those that no model of the architecture has."""
    n_blocks = metadata.integer("@.block_count", least=1)
    found, foreign = {}, []
    for name, tensor in tensors.items():
        target = _target(kind, name, n_blocks)
        if target is not None:
            found[target] = _arranged(kind, name, tensor, config)
        elif name not in _SETTINGS:
            foreign.append(name)
    require(
        not foreign,
        f"{metadata.path} has tensors that no {metadata.architecture} model of {n_blocks} blocks known here has:"
        f" {some(foreign, 3)}; use a file made for a model of this architecture",
    )
    missing = _missing(kind, n_blocks, tensors)
    require(not missing, f"{metadata.path} has no tensor {some(missing, 3)}; it is incomplete, download it again")
    return found


def _missing(kind: Architecture, n_blocks: int, tensors: Collection[str]) -> list[str]:
    """Tensors outside of blocks, and those that another block has."""
    matches = [match for match in map(_BLOCK.fullmatch, tensors) if match is not None]
    parts = sorted({f"{match[2]}.{match[3]}" for match in matches if match[2] not in kind.some_blocks})
    blocks = range(min(n_blocks, len(tensors) + 1))
    outer = [f"{name}.weight" for name in kind.outer if name != "output"]
    names = [*outer, *(f"blk.{i}.{part}" for part in parts for i in blocks)]
    return [name for name in names if name not in tensors]


def _target(kind: Architecture, name: str, n_blocks: int) -> str | None:
    """The Hugging Face name, or None."""
    match = _BLOCK.fullmatch(name)
    if match is not None:
        layer, known = kind.block.get(match[2]), int(match[1]) < n_blocks
        return f"{kind.prefix.format(match[1])}{layer}.{match[3]}" if layer and known else None
    match = _OUTER.fullmatch(name)
    layer = kind.outer.get(match[1]) if match is not None else None
    return f"{layer}.{match[2]}" if match is not None and layer else None


def _arranged(kind: Architecture, name: str, tensor: GGUFTensor, config: dict[str, Any]) -> GGUFTensor:
    match = _BLOCK.fullmatch(name)
    arranger = kind.arrange.get(match[2] if match is not None else name.rpartition(".")[0])
    if arranger is None:
        return tensor
    return dataclasses.replace(tensor, shape=arranged_shape(arranger, tensor.stored), arrange=arranger(config))
