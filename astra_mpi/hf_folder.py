"""Files of a Hugging Face folder: JSON, and weights in model.safetensors or the shards that its index names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: values of a tensor read at a time where it is not needed as a whole: 4 MiB
_PIECE = 1 << 20
_FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies; it stays on disk until it is read."""

    path: Path
    name: str
    dtype: str  # as the file calls it
    shape: tuple[int, ...]

    def check(self) -> None:
        """InputError on integers and exotic floats."""
        if self.dtype not in _FLOATS:
            raise InputError(f"{self.path}: tensor {self.name} is {self.dtype}; save the model as float32 or bfloat16")

    def pieces(self) -> Iterator[np.ndarray]:
        """Its values as float32, some rows at a time."""
        with _safe_open(self.path) as file:
            part = file.get_slice(self.name)
            step = max(1, _PIECE // max(1, math.prod(self.shape[1:])))
            for first in range(0, self.shape[0], step):
                yield np.asarray(part[first : min(first + step, self.shape[0])], np.float32)

    def read(self) -> np.ndarray:
        """Its values as float32."""
        with _safe_open(self.path) as file:
            return np.asarray(file.get_tensor(self.name), np.float32)


def _safe_open(path: Path) -> Any:
    try:
        import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
        from safetensors import SafetensorError, safe_open
    except ImportError as exc:
        raise InputError(f"reading {path} needs {exc.name}; pip install 'astra-mpi[text]'") from exc
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as exc:
        raise InputError(f"{path} is truncated or no safetensors file ({exc}); download it again") from exc


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
    with _safe_open(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        return {name: Tensor(path, name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


def load_json(path: Path) -> Any:
    """The value of a JSON file; InputError if it is missing or damaged."""
    require(path.is_file(), f"{path} is missing; give a complete Hugging Face folder")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{path} is not valid JSON ({exc}); download it again") from exc


def load_object(path: Path) -> dict[str, Any]:
    """The object of a JSON file; InputError if it is another value."""
    value = load_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; download it again")
    return value


def load_settings(path: Path) -> dict[str, Any]:
    """The object of a JSON file, without the keys that are null."""
    return {key: entry for key, entry in load_object(path).items() if entry is not None}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
