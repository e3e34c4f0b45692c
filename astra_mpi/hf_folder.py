"""Files of a Hugging Face folder: JSON, and weights in model.safetensors or the shards that its index names.

The safetensors format (an 8-byte length, a JSON header, raw tensors) is read here because the library's NumPy
interface has no bfloat16. Tensors stay on disk until they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies."""

    path: Path
    name: str
    dtype: str  # as the file calls it
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    def read(self) -> np.ndarray:
        """Its values as float32. InputError on integers and exotic floats."""
        if self.dtype not in _DTYPES:
            raise InputError(f"{self.path}: tensor {self.name} is {self.dtype}; save the model as float32 or bfloat16")
        raw = np.memmap(self.path, _DTYPES[self.dtype], "r", self.offset, self.shape or (1,))
        if self.dtype == "BF16":  # bfloat16 is the upper half of a float32
            return (raw.astype("<u4") << 16).view("<f4").reshape(self.shape)
        return np.array(raw, np.float32).reshape(self.shape)


def open_weights(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """-> (tensors by name, weight files). InputError on missing or damaged files."""
    if (folder / WHOLE).is_file():
        tensors = _read_header(folder / WHOLE)
        return tensors, [folder / WHOLE]
    require((folder / INDEX).is_file(), _no_weights(folder))
    weight_map = load_settings(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / INDEX} names no weights; download it again")
    files = []
    for shard in sorted(set(map(str, weight_map.values()))):
        require(Path(shard).name == shard, f"{folder / INDEX} names the shard '{shard}' outside the folder")
        require((folder / shard).is_file(), f"{folder / shard} is missing, though {INDEX} names it; download it again")
        files.append(folder / shard)
    return {name: tensor for path in files for name, tensor in _read_header(path).items()}, files


def _no_weights(folder: Path) -> str:
    if (folder / "pytorch_model.bin").is_file():
        return (
            f"{folder} has only pytorch_model.bin, a pickle, which is never loaded; "
            "save it with save_pretrained(..., safe_serialization=True)"
        )
    return f"{folder} has no {WHOLE} and no {INDEX}; give a folder with safetensors weights"


def _read_header(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        require(8 + length <= size, f"{path} is truncated or no safetensors file; download it again")
        raw = file.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)
        header.pop("__metadata__", None)
        tensors = {name: _tensor(path, name, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise InputError(f"{path} has a damaged header ({exc}); download it again") from exc
    ends = [8 + length + header[name]["data_offsets"][1] for name in tensors]
    require(max(ends, default=0) <= size, f"{path} is truncated; download it again")
    return tensors


def _tensor(path: Path, name: str, entry: dict[str, Any], start: int) -> Tensor:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    dtype = str(entry["dtype"])
    n_bytes = math.prod(shape) * np.dtype(_DTYPES.get(dtype, "u1")).itemsize
    if min(shape, default=0) < 0 or begin < 0 or (dtype in _DTYPES and end - begin != n_bytes):
        raise ValueError(f"tensor {name} of shape {shape} cannot lie in bytes {begin} to {end}")
    return Tensor(path, name, dtype, shape, start + begin)


def load_json(path: Path) -> Any:
    """The value of a JSON file; InputError if it is missing or damaged."""
    require(path.is_file(), f"{path} is missing; give a complete Hugging Face folder")
    try:
        return json.loads(path.read_bytes())
    except ValueError as exc:
        raise InputError(f"{path} is not valid JSON ({exc}); download it again") from exc


def load_settings(path: Path) -> dict[str, Any]:
    """The object of a JSON file, without the keys that are null."""
    value = load_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; download it again")
    return {key: entry for key, entry in value.items() if entry is not None}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
