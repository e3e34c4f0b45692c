"""The tensors of a checkpoint by the names that a family knows, whatever wrapped the model when it was saved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from astra_mpi.checkpoint.config import DEQUANTISE, HFConfig, shown
from astra_mpi.checkpoint.folder import Tensor
from astra_mpi.checkpoint.reference import ASIDE
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files.weightfile import some

#: dtypes of config.json, as safetensors calls them
_STORED = {"float16": "F16", "bfloat16": "BF16"}
#: ends of the names that quantised weights have beside or instead of `weight`
_QUANTISED = (
    *(".qweight", ".qzeros", ".g_idx", ".SCB", ".absmax", ".quant_map"),
    *(".weight_packed", ".weight_scale", ".weight_scale_inv", ".weight_format"),
)
#: settings by which blocks have some norms or not
_NORM_SWITCHES = ("use_parallel_residual", "qk_layernorm")


class Tensors:
    """Tensors by a family's names: without its prefix, or what a wrapper put before them, or under older names."""

    def __init__(self, where: Any, family: Any, tensors: Mapping[str, Tensor]) -> None:
        """where: the folder, for messages. InputError on names that only partly begin with a wrapper's prefix."""
        self.where, self.family, self.notes = where, family, list[str]()
        wrapper = self._wrapper(tensors)
        if wrapper:
            self.notes.append(f"all tensors begin with '{wrapper}', which a wrapper put there; it was taken off")
        self.files = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
        self._instead: dict[str, str] = {}

    def find(self, name: str) -> Tensor | None:
        """A tensor by its Hugging Face name. InputError where two tensors go by it."""
        name = self._instead.get(name, name)
        found = [self.files[one] for one in self._candidates(name) if one in self.files]
        several = [one.name for one in found]
        require(len(found) < 2, f"{self.where} has {some(several)}, two tensors for one weight; remove one")
        return found[0] if found else None

    def has(self, name: str) -> bool:
        return self.find(name) is not None

    def use(self, name: str, instead: str) -> None:
        """From now on, `find(name)` gives the tensor `instead`."""
        self._instead[name] = instead

    def unused(self, used: Sequence[Tensor]) -> list[str]:
        """Names of the tensors that are left, those that are no weights not counted."""
        names = {tensor.name for tensor in used}
        return sorted(
            name
            for name, tensor in self.files.items()
            if tensor.name not in names and not name.endswith(self.family.hf_constants)
        )

    def in_blocks(self, names: Sequence[str]) -> list[str]:
        """Those of these names that belong to a block."""
        return [name for name in names if name.removeprefix(self.family.hf_prefix).startswith(self.family.hf_blocks)]

    def check_plain(self) -> None:
        """InputError on quantised weights, and on those of adapters."""
        marks = [name for name in self.files if name.endswith(_QUANTISED)]
        require(not marks, f"{self.where} has quantised weights ({some(marks, 3)}); {DEQUANTISE}")
        adapters = [name for name in self.files if "lora_" in name or ".base_layer." in name]
        require(
            not adapters,
            f"{self.where} has an adapter beside its weights ({some(adapters, 3)}); merge it with merge_and_unload()"
            " of peft and save the result",
        )

    def blame(self, names: Sequence[str], hf: HFConfig) -> str:
        """The settings of config.json that decide whether there are tensors of these names."""
        biases = [key for key in hf.reference.fields if key.endswith("_bias")]
        norms = [key for key in hf.reference.fields if key in _NORM_SWITCHES]
        keys = [hf.called(hf.reference.layers_key)] * bool(self.in_blocks(names))
        keys += biases * any(name.endswith(".bias") for name in names)
        keys += norms * any("norm" in name for name in names)
        return ", ".join(keys or ["architectures"])

    def _candidates(self, name: str) -> list[str]:
        names = [name]
        for ours, other in self.family.hf_other_names:
            names += [re.sub(ours, other, one) for one in names]
        return [prefix + one for one in dict.fromkeys(names) for prefix in (self.family.hf_prefix, "")]

    def _wrapper(self, tensors: Mapping[str, Tensor]) -> str:
        """What stands before the names of all tensors; nothing, as a rule."""
        ends = [one.removeprefix(self.family.hf_prefix) for one in self._candidates(self.family.hf_anchor)]
        before = set()
        for name in tensors:
            for end in ends:
                if name == end or name.endswith(f".{end}"):
                    before.add(name.removesuffix(end).removesuffix(self.family.hf_prefix))
        if "" in before or not before:
            return ""
        if len(before) > 1:
            raise InputError(
                f"{self.where} has several models, under {some(sorted(before))}; save the one that is meant"
            )
        wrapper = before.pop()
        others = [name for name in tensors if not name.startswith(wrapper)]
        require(
            not others,
            f"{self.where}: the model's tensors begin with '{wrapper}', but others do not ({some(sorted(others), 3)});"
            " save the model that is inside of the wrapper",
        )
        return wrapper


def rounding(hf: HFConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """A note where transformers rounds weights to the dtype of config.json when it loads them."""
    key = next((key for key in ASIDE if hf.values.get(key) is not None), "dtype")
    wanted, stored = hf.values.get(key), sorted({tensor.dtype for tensor in tensors.values()})
    if wanted in (None, "float32", "float64") or stored == [_STORED.get(str(wanted))]:
        return []
    return [
        f"config.json says {key} = {shown(wanted)}, but weights are stored as {', '.join(stored)}: transformers rounds"
        " them when it loads them; here they stay as they are stored"
    ]


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same values; neither is read as a whole."""
    if a.shape != b.shape:
        return False
    return all(np.array_equal(x, y) for x, y in zip(a.pieces(), b.pieces(), strict=True))
