"""A layer that an embedding goes through after pooling: the Dense module of sentence-transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import Tensor, load_settings, open_weights
from astra_mpi.config import require
from astra_mpi.models.hf import Source

_ACTIVATIONS = {"Tanh": "tanh", "Identity": "identity", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
_OWN = "sentence_embedding"


@dataclass(frozen=True)
class DenseModule:
    """Its folder, sizes, and the name of what follows the linear layer."""

    folder: Path
    inputs: int
    width: int
    activation: str
    has_bias: bool

    def tensors(self, i: int) -> dict[str, tuple[Source, Tensor | None]]:
        """Of layer i: our name -> where it comes from, a missing bias being zeros. InputError if a file is damaged."""
        found, _ = open_weights(self.folder)
        wanted = {f"dense.{i}.weight": "linear.weight"} | ({f"dense.{i}.bias": "linear.bias"} if self.has_bias else {})
        for name in wanted.values():
            require(name in found, f"{self.folder} has no tensor {name}; download it again")
        made: dict[str, tuple[Source, Tensor | None]] = {n: (Source(t), found[t]) for n, t in wanted.items()}
        return {f"dense.{i}.bias": (Source(""), None)} | made


def read_dense(folder: Path) -> DenseModule:
    """What config.json of the module says. InputError on what is not supported."""
    path = folder / "config.json"
    settings: dict[str, Any] = load_settings(path)
    sizes = {key: settings.get(key) for key in ("in_features", "out_features")}
    for key, size in sizes.items():
        require(type(size) is int and size > 0, f"{path}: {key} = {size!r} must be a positive integer")
    function = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = _ACTIVATIONS.get(function.rpartition(".")[2]) if function.startswith("torch.") else None
    known = ", ".join(_ACTIVATIONS)
    require(name is not None, f"{path}: activation_function = {function!r} is not supported; only {known} are")
    for key in ("module_input_name", "module_output_name"):
        require(
            settings.get(key, _OWN) == _OWN, f"{path}: {key} = {settings.get(key)!r} is not supported; only {_OWN} is"
        )
    require(not settings.get("use_residual"), f"{path}: use_residual is not supported; only false is")
    has_bias = settings.get("bias", True)
    require(isinstance(has_bias, bool), f"{path}: bias = {has_bias!r} must be true or false")
    return DenseModule(folder, int(sizes["in_features"] or 0), int(sizes["out_features"] or 0), str(name), has_bias)
