"""Files of a Hugging Face folder: JSON, and weights in model.safetensors or the shards that its index names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.checkpoint.found import INDEX, WHOLE, check_pointer, no_weights
from astra_mpi.config import require
from astra_mpi.errors import InputError

#: values of a tensor read at a time where it is not needed as a whole: 4 MiB
_PIECE = 1 << 20
_FLOATS = ("F64", "F32", "F16", "BF16")
#: what quantised weights are mostly stored as
_PACKED = ("U8", "I8", "U16", "I16", "U32", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies; it stays on disk until it is read."""

    path: Path
    name: str
    dtype: str  # as the file calls it
    shape: tuple[int, ...]

    def check(self) -> None:
        """InputError on integers and exotic floats."""
        if self.dtype in _PACKED:
            raise InputError(
                f"{self.path}: tensor {self.name} is {self.dtype}, as in quantised checkpoints; give the checkpoint in"
                " float32 or bfloat16 that it was made from, `--dtype int8` then stores it smaller"
            )
        if self.dtype not in _FLOATS:
            raise InputError(f"{self.path}: tensor {self.name} is {self.dtype}; save the model as float32 or bfloat16")

    @property
    def kept_as(self) -> str:
        """The weight format that keeps its numbers as they are, or nearly so."""
        return "float32"

    def kept(self, name: str, shape: tuple[int, ...], source: Any) -> Any:
        """Weight `name` in that format without being widened, or None where it has to be; source: what it is of it."""
        return None

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


class Joined(Tensor):
    """Tensors one after the other, along the first axis."""

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> Joined:
        """ValueError where they do not fit together."""
        if len({part.shape[1:] for part in parts}) > 1 or not parts[0].shape:
            raise ValueError("shapes differ")
        shape = (sum(part.shape[0] for part in parts), *parts[0].shape[1:])
        joined = cls(parts[0].path, parts[0].name, parts[0].dtype, shape)
        object.__setattr__(joined, "parts", tuple(parts))
        return joined

    parts: tuple[Tensor, ...]

    def check(self) -> None:
        for part in self.parts:
            part.check()

    def read(self) -> np.ndarray:
        return np.concatenate([part.read() for part in self.parts])


def _safe_open(path: Path) -> Any:
    try:
        import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
        from safetensors import SafetensorError, safe_open
    except ImportError as exc:
        raise InputError(f"reading {path} needs {exc.name}; pip install 'astra-mpi[text]'") from exc
    check_pointer(path)
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as exc:
        raise InputError(f"{path} is truncated or no safetensors file ({exc}); download it again") from exc


def open_weights(folder: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """-> (tensors by name, weight files). InputError on missing or damaged files and on a wrong index."""
    if (folder / WHOLE).is_file():
        tensors = _read_header(folder / WHOLE)
        return tensors, [folder / WHOLE]
    if not (folder / INDEX).is_file():
        raise InputError(no_weights(folder))
    weight_map = load_settings(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / INDEX} names no weights; download it again")
    files = {shard: _shard(folder, shard) for shard in sorted(set(map(str, weight_map.values())))}
    headers = {shard: _read_header(path) for shard, path in files.items()}
    for name, shard in weight_map.items():
        wrong = f"{folder / INDEX} says that {shard} has the tensor {name}, and it has not; download both again"
        require(name in headers[str(shard)], wrong)
    tensors = {}
    for shard, header in headers.items():
        # a tensor that the index does not name is taken all the same, as transformers does, but not from two shards
        twice = [name for name in header if name in tensors and name not in weight_map]
        require(not twice, f"{folder / shard} has {', '.join(twice)}, which another shard has too; remove one")
        tensors |= {name: tensor for name, tensor in header.items() if weight_map.get(name, shard) == shard}
    return tensors, list(files.values())


def _shard(folder: Path, name: str) -> Path:
    """A weight file that the index names. InputError if it is missing or outside the folder."""
    path = folder / name
    try:
        # a file may be a link to elsewhere, as in the Hub's cache
        inside, found = path.parent.resolve().is_relative_to(folder.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as exc:
        raise InputError(f"{folder / INDEX} names a shard that no file can have ({exc}); download it again") from exc
    require(inside, f"{folder / INDEX} names the shard '{name}' outside the folder")
    require(found, f"{path} is missing, though {INDEX} names it; download it again")
    return path


def check_adapter(folder: Path) -> None:
    """InputError if the folder has a LoRA or other adapter, alone or beside weights that are without it."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    settings = load_settings(path)
    whole = any((folder / name).is_file() for name in (WHOLE, INDEX))
    what = (
        "beside weights that do not have it in them; transformers adds it where peft is installed, and only there"
        if whole
        else f"and no model; its base is {settings.get('base_model_name_or_path', 'not named')}"
    )
    raise InputError(
        f"{folder} has an adapter ({path.name}, {settings.get('peft_type', 'of an unknown type')}) {what}: merge it by"
        " peft's PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(...)"
        + (f", or remove {path.name} to convert the model without it" if whole else " and convert that folder")
    )


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
