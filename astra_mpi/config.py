"""Frozen, validated descriptions: what a model is and how its activations are quantised."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self

from astra_mpi.errors import InputError

if TYPE_CHECKING:
    import numpy as np

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")


def require(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


#: marks fields that are stored only where they are set
OPTIONAL = {"optional": True}


def optional(default: Any) -> Any:
    """A field that is stored only where it is not its default, so that older models keep their digest."""
    return field(default=default, metadata=OPTIONAL)


def stored_fields(config: Any) -> dict[str, Any]:
    """Fields of a config by name, those that are `optional` only where they are set."""
    values, fields = dataclasses.asdict(config), dataclasses.fields(config)
    unset = {f.name for f in fields if f.metadata.get("optional") and values[f.name] == f.default}
    return {name: value for name, value in values.items() if name not in unset}


@dataclass(frozen=True)
class ModelConfig:
    """What every family has; a family's own dataclass adds to it (see `astra_mpi.models`)."""

    family: ClassVar[str] = ""  # its name in model files

    d_model: int  # D
    n_heads: int  # H query heads
    n_kv_heads: int  # key and value heads; H unless grouped-query
    n_layers: int  # L blocks
    d_ff: int  # inner width of the MLP
    activation: str  # "gelu" (erf), "gelu_tanh", "quick_gelu", "relu" or "silu"
    norm_eps: float  # added to the variance
    _: KW_ONLY
    d_head: int = optional(0)  # width of a head; 0: d_model / n_heads
    score_scale: float = optional(0.0)  # of queries times keys; 0: d_head^-0.5
    score_cap: float = optional(0.0)  # scores s become cap tanh(s / cap); 0: they stay
    windows: tuple[int, ...] = optional(())  # per block: a token sees those nearer than this; 0: all. (): all in all

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "n_kv_heads", "n_layers", "d_ff"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"config: {name} = {value!r} must be a positive integer")
        whole = self.d_model % self.n_heads == 0
        require(
            whole or self.d_head != 0,
            f"config: d_model {self.d_model} is not a multiple of n_heads {self.n_heads}",
        )
        object.__setattr__(self, "d_head", self.d_head or self.d_model // self.n_heads)
        good = type(self.d_head) is int and self.d_head >= 1
        require(good, f"config: d_head = {self.d_head!r} must be a positive integer")
        for name in ("score_scale", "score_cap"):
            require(0 <= getattr(self, name) < math.inf, f"config: {name} = {getattr(self, name)!r} must be 0 or more")
        fits = len(self.windows) in (0, self.n_layers) and all(type(n) is int and n >= 0 for n in self.windows)
        require(fits, f"config: windows = {list(self.windows)} must be {self.n_layers} integers of 0 or more, or none")
        require(self.n_heads % self.n_kv_heads == 0, f"config: n_heads {self.n_heads} is not a multiple of n_kv_heads")
        require(self.activation in ACTIVATIONS, f"config: unknown activation '{self.activation}'")
        require(self.norm_eps > 0, f"config: norm_eps = {self.norm_eps} must be positive")

    @property
    def d_queries(self) -> int:
        """Width of the queries of a token."""
        return self.n_heads * self.d_head

    @property
    def share_width(self) -> int:
        """Numbers per sequence that each rank puts into the sum that ends a forward pass."""
        return self.d_model

    @property
    def merged_heads(self) -> int:
        """Heads of an attention that pools; the sum is then a merge of softmaxes (`Exchange.merge`). 0: a plain sum."""
        return 0

    @property
    def d_kv(self) -> int:
        """Width of the keys (and of the values) of a token."""
        return self.n_kv_heads * self.d_head

    def window(self, i: int) -> int:
        """Of block i; 0: all tokens are seen."""
        return self.windows[i] if self.windows else 0

    def last_position(self, first: np.ndarray, max_positions: int) -> np.ndarray:
        """Where sequences must end whose new tokens begin at `first` (B,)."""
        return first * 0 + max_positions

    def as_dict(self) -> dict[str, Any]:
        """Fields that are `optional` only where they are set, so that models of earlier versions keep their digest."""
        values = stored_fields(self)
        if self.d_head * self.n_heads == self.d_model:
            values.pop("d_head", None)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping; InputError on unknown or missing keys and on wrong types."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - set(fields))
        require(not unknown, f"config: unknown keys {', '.join(unknown)}")
        needed = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
        missing = sorted(set(needed) - set(values))
        require(not missing, f"config: missing keys {', '.join(missing)}")
        try:
            settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            return cls(**settings)
        except TypeError as exc:
            raise InputError(f"config: a value has the wrong type ({exc})") from exc
