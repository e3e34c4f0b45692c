"""config.json as a family reads it: defaults of the reference for what is missing, nothing that counts left unread."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from astra_mpi.checkpoint.reference import Reference
from astra_mpi.config import require
from astra_mpi.errors import InputError, some

#: activations of transformers that compute the same -> our name
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
#: kinds of auto_map whose class computes the answer
_MODEL_CODE = ("AutoConfig", "AutoModel")
#: the cure for quantised weights
DEQUANTISE = "give the checkpoint in full precision, or dequantise it with transformers and save that"


class HFConfig:
    """The values of a config.json, remembered as they are read; `check_rest` judges those that nobody read.

    A key that is missing has the reference's default. A null is what the reference takes for it: no value where a
    field may have none, an error elsewhere.
    """

    #: the encoder alone is wanted, whatever head the checkpoint has
    bare = False

    def __init__(self, values: Mapping[str, Any], reference: Reference) -> None:
        """InputError on architectures, custom code and quantisation that are not supported."""
        self._aliases = {name: alias for alias, name in reference.aliases.items() if alias in values}
        self.values = {key: value for key, value in values.items() if key not in reference.aliases}
        self.values |= {name: values[alias] for name, alias in self._aliases.items()}
        self.reference, self.read = reference, {"model_type"}
        self.notes, self.assumed = list[str](), list[str]()
        self._check_code()
        quantised = self.get("quantization_config")
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else quantised
        require(
            quantised is None, f"quantization_config: the weights are quantised (method {shown(method)}); {DEQUANTISE}"
        )

    @property
    def architectures(self) -> list[str]:
        """Classes of transformers that config.json names; empty where it does not say."""
        named = self.get("architectures") or []
        require(
            isinstance(named, list) and all(isinstance(name, str) for name in named),
            f"architectures = {shown(named)} must be a list of names",
        )
        return named

    def called(self, key: str) -> str:
        """What config.json calls a field."""
        return self._aliases.get(key, key)

    def get(self, key: str) -> Any:
        """The value as it is, or the reference's default; None for a key without either."""
        self.read.add(key)
        default = self.reference.default(key) if self.reference.has(key) else None
        return self.values.get(key, default)

    def integer(self, key: str, at_least: int = 1) -> int:
        value = self._given(key)
        wrong = f"{self.called(key)} = {shown(value)} must be an integer >= {at_least}"
        require(type(value) is int and value >= at_least, wrong)
        return value

    def number(self, key: str) -> float:
        """A positive, finite number."""
        return positive(self.called(key), self._given(key))

    def _given(self, key: str) -> Any:
        """`get`, and a note where the reference's default had to be taken."""
        value = self.get(key)
        if key not in self.values:
            self.assumed.append(f"config.json has no {key}; {shown(value)} was taken, the reference's default")
        return value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        require(isinstance(value, bool), f"{key} = {shown(value)} must be true or false")
        return value

    def activation(self, key: str) -> str:
        """Our name of it."""
        name = self._given(key)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise InputError(f"{key}: unknown activation {shown(name)}; use one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def only(self, key: str, allowed: Collection[Any], why: str = "") -> None:
        """InputError unless the value is one of those that are supported."""
        value = self.get(key)
        if not any(same(value, one) for one in allowed):
            raise InputError(
                f"{key} = {shown(value)} is not supported; only {' or '.join(map(shown, allowed))} is{why}"
            )

    def heads(self, width: str, heads: str) -> tuple[int, int]:
        """-> (width, heads), of which the one must be a multiple of the other."""
        d_model, n_heads = self.integer(width), self.integer(heads)
        wrong = f"{self.called(width)} = {d_model} is not a multiple of {self.called(heads)} = {n_heads}"
        require(d_model % n_heads == 0, wrong)
        return d_model, n_heads

    def check_rest(self) -> None:
        """Judge what nobody read. InputError names a key that would change the reference's answer; keys that the
        reference does not read are noted."""
        unknown = []
        for key in sorted(set(self.values) - self.read):
            passing = self.reference.passing(key)
            if self.reference.why_harmless(key):
                continue
            if self.reference.has(key):
                self.only(key, (self.reference.default(key),))
            elif passing is not None:
                self.only(key, (*passing, None))
            else:
                unknown.append(shown(key))
        if unknown:
            self.notes.append(f"config.json has keys that the reference does not read, left aside: {some(unknown)}")

    def _check_code(self) -> None:
        supported = self.reference.architectures
        for name in self.architectures:
            require(
                name in supported,
                f"architectures: {shown(name)} is not supported, for its answers are not known here;"
                f" use one of {', '.join(supported)}",
            )
        self.read.add("auto_map")
        code = self.values.get("auto_map", {})
        require(isinstance(code, Mapping), f"auto_map = {shown(code)} must be an object")
        for kind in (kind for kind in code if kind.startswith(_MODEL_CODE) and code[kind]):
            raise InputError(
                f"auto_map: the model is computed by code of its own ({shown(code[kind])}), which is never run;"
                " if it is the same as transformers' class, take auto_map out of config.json"
            )


def positive(key: str, value: Any) -> float:
    """InputError unless the value is a positive, finite number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    require(good, f"{key} = {shown(value)} must be a number above 0")
    return float(value)


def same(a: Any, b: Any) -> bool:
    """Equal, and truth values not taken for numbers."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def shown(value: Any) -> str:
    """A value as config.json writes it, cut short."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deep"
    return text if len(text) <= 80 else f"{text[:77]}..."
