"""Rotary positions as config.json states them, in this package's terms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from astra_mpi.checkpoint.config import HFConfig, positive, shown
from astra_mpi.config import require
from astra_mpi.errors import InputError, some
from astra_mpi.models.rope import TYPES, Rope

_THETA = ("rope_theta",)
_LINEAR = (*_THETA, "factor")
#: keys of config.json that a type reads; those in the second tuple may be missing
_READ: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": (_THETA, ()),
    "linear": (_LINEAR, ()),
    "llama3": ((*_LINEAR, "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "yarn": (
        (*_LINEAR, "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        (*_THETA, "short_factor", "long_factor", "original_max_position_embeddings"),
        ("attention_factor", "factor"),
    ),
}
#: those that may stand in config.json itself
_OWN = ("rope_theta", "original_max_position_embeddings", "partial_rotary_factor")
_PART = "partial_rotary_factor"
_LOCAL_AND_GLOBAL = {"rope_theta": 1_000_000.0, "rope_local_base_freq": 10_000.0}


def rope_settings(
    hf: HFConfig,
    max_positions: int,
    d_head: int,
    theta: float = 10000.0,
    part: float | None = None,
    kinds: tuple[str, ...] = TYPES,
    older: Mapping[str, str] = MappingProxyType({}),
    names: Mapping[str, str] = MappingProxyType({}),
) -> Rope:
    """Rotary positions of config.json, merged as transformers 5 does.

    `rope_scaling`, unless it is empty, takes the place of all of `rope_parameters`. The file's own `rope_theta` counts
    where that has none, its own `original_max_position_embeddings` in any case. `type` is an older name of `rope_type`.
    theta, part: the family's defaults of `rope_theta` and `partial_rotary_factor`; part None: heads turn as a whole.
    kinds, older: types of rotary positions that it knows, and other names of theirs. names: what the file calls keys.
    InputError names what is not supported.
    """
    for key in ("rope_parameters", "rope_scaling"):
        require(isinstance(hf.get(key) or {}, dict), f"{key} = {shown(hf.get(key))} must be an object")
    key = "rope_scaling" if hf.get("rope_scaling") else "rope_parameters"
    found = hf.get(key) or {}
    called = {name: names.get(name, name) for name in _OWN}
    own = {name: hf.get(key) for name, key in called.items() if hf.get(key) is not None or key in hf.values}
    if part is None:
        hf.only(_PART, (None, 1))
    kind = found.get("rope_type", found.get("type", "default"))
    found = found | {"rope_type": older.get(kind, kind) if isinstance(kind, str) else kind} if found else found
    return _rope(hf, key, own, found, max_positions, d_head, theta, part, kinds)


def local_and_global(
    hf: HFConfig, max_positions: int, d_head: int, thetas: Mapping[str, float] = _LOCAL_AND_GLOBAL
) -> tuple[Rope, float]:
    """-> (rotary positions of full blocks, theta of blocks with a window), as Gemma 3 and ModernBERT state them.

    `rope_parameters` has an object for each; else `rope_scaling` and `rope_theta` are of full blocks, and
    `rope_local_base_freq` is the others' theta. thetas: these keys of both, and their defaults.
    """
    given, scaling = hf.get("rope_parameters"), hf.get("rope_scaling")
    given = {} if given is None else given
    kinds = ("full_attention", "sliding_attention")
    nested = isinstance(given, dict) and set(given) <= set(kinds)
    nested = nested and all(isinstance(x, dict | None) for x in given.values())
    require(nested, f"rope_parameters = {shown(given)} must have objects {' and '.join(kinds)}")
    require(isinstance(scaling or {}, dict), f"rope_scaling = {shown(scaling)} must be an object")
    hf.only(_PART, (None, 1))
    full, local = (dict(given.get(kind) or {}) for kind in kinds)
    full |= scaling or {}
    key = "rope_scaling" if scaling else "rope_parameters"
    theta, local_theta = (hf.values.get(name, default) for name, default in thetas.items())
    for name in thetas:
        hf.read.add(name)
    rope = _rope(hf, key, {"rope_theta": theta}, full, max_positions, d_head, theta, None, TYPES)
    own = {"rope_theta": local_theta}
    local_rope = _rope(hf, "rope_parameters", own, local, max_positions, d_head, local_theta, None, ("default",))
    return rope, local_rope.theta


def _rope(
    hf: HFConfig,
    key: str,
    own: dict[str, Any],
    found: dict[str, Any],
    max_positions: int,
    d_head: int,
    theta: float,
    part: float | None,
    kinds: tuple[str, ...],
) -> Rope:
    """Rotary positions of an object `found` under `key`, and of what config.json has of `own`."""
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in kinds:
        raise InputError(f"{key}: rope_type {shown(kind)} is not supported; use one of {', '.join(kinds)}")
    merged = {"rope_theta": theta, "original_max_position_embeddings": max_positions} | own | found
    if "original_max_position_embeddings" in own:
        merged["original_max_position_embeddings"] = own["original_max_position_embeddings"]
    width = _width(key, merged, d_head, part)
    needed, others = _READ[kind]
    read = ("type", "rope_type", _PART, *needed, *others)
    _check_unused(hf, key, {name: value for name, value in found.items() if name not in read})
    missing = [name for name in needed if name not in merged]
    require(not missing, f"{key}: rope_type {kind} needs {', '.join(missing)}")
    made: dict[str, Any] = {"theta": positive("rope_theta", merged["rope_theta"]), "width": width % d_head}
    if "factor" in needed:
        made["factor"] = positive("factor", merged["factor"])
    if kind in ("llama3", "yarn", "longrope"):
        name = "original_max_position_embeddings"
        made["trained_positions"] = int(positive(name, merged[name]))
    if kind == "llama3":
        low, high = (positive(name, merged[name]) for name in ("low_freq_factor", "high_freq_factor"))
        require(high > low, f"{key}: high_freq_factor must be above low_freq_factor")
        made |= {"low_factor": low, "high_factor": high}
    elif kind == "yarn":
        made |= _yarn(key, merged, made, width)
    elif kind == "longrope":
        made |= _longrope(key, merged, made, width, max_positions)
    return Rope(type=kind, **made)


def rope_fields(rope: Rope) -> dict[str, Any]:
    """As fields of a `RotaryConfig`."""
    names = "theta type factor low_factor high_factor trained_positions width scale ramp short long"
    return {f"rope_{name}": getattr(rope, name) for name in names.split()}


def _width(key: str, merged: dict[str, Any], d_head: int, part: float | None) -> int:
    """Numbers of a head that turn."""
    share = merged.get(_PART)
    if part is None:
        whole = share in (None, 1) and not isinstance(share, bool)
        require(whole, f"{key}: {_PART} = {shown(share)} is not supported")
        return d_head
    share = part if share is None else positive(_PART, share)
    width = int(d_head * share)
    fits = 0 < width <= d_head and width % 2 == 0
    require(fits, f"{key}: {_PART} = {shown(share)} turns {width} of a head's {d_head} numbers; give an even part")
    return width


def _yarn(key: str, merged: dict[str, Any], made: dict[str, Any], width: int) -> dict[str, Any]:
    """YaRN (arXiv 2309.00071)."""
    theta, factor, trained = made["theta"], made["factor"], made["trained_positions"]
    scale = merged.get("attention_factor")
    if scale is None:
        mscale, all_dim = merged.get("mscale"), merged.get("mscale_all_dim")
        scale = _mscale(factor, mscale) / _mscale(factor, all_dim) if mscale and all_dim else _mscale(factor, 1)
    fast, slow = (positive(name, merged.get(name) or value) for name, value in (("beta_fast", 32), ("beta_slow", 1)))
    low, high = (width * math.log(trained / (n * 2 * math.pi)) / (2 * math.log(theta)) for n in (fast, slow))
    truncate = merged.get("truncate", True)
    require(isinstance(truncate, bool), f"{key}: truncate = {shown(truncate)} must be true or false")
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return {"scale": positive("attention_factor", scale), "ramp": (float(max(low, 0)), float(min(high, width - 1)))}


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(key: str, merged: dict[str, Any], made: dict[str, Any], width: int, max_positions: int) -> dict[str, Any]:
    """LongRoPE (arXiv 2402.13753)."""
    trained, scale, found = made["trained_positions"], merged.get("attention_factor"), {}
    for name in ("short", "long"):
        factors = merged[f"{name}_factor"]
        good = isinstance(factors, list) and len(factors) == width // 2
        require(good, f"{key}: {name}_factor must be a list of {width // 2} numbers")
        found[name] = tuple(positive(f"{name}_factor", x) for x in factors)
    factor = max_positions / trained if merged.get("factor") is None else positive("factor", merged["factor"])
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
    return {**found, "scale": positive("attention_factor", scale)}


def _check_unused(hf: HFConfig, key: str, unused: dict[str, Any]) -> None:
    """Keys of the rotary settings that their type does not read: noted, if they could not matter."""
    for name, value in unused.items():
        part = name == "partial_rotary_factor" and value not in (None, 1)
        if part or isinstance(value, dict):
            raise InputError(f"{key}: {shown(name)} = {shown(value)} is not supported")
    if unused:
        hf.notes.append(
            f"{key} has keys that its rope_type does not read, left aside: {some(list(map(shown, unused)))}"
        )
