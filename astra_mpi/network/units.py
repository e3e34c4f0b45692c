"""Bandwidths, durations and memory as people write them: `10Mbps`, `2ms`, `8GB`."""

from __future__ import annotations

import math
import re

from astra_mpi.config import require

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(\S*)\s*", re.IGNORECASE)
_BANDWIDTHS = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9, "tbps": 1e12}
_DURATIONS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_MEMORY = {"mb": 1e6, "gb": 1e9, "tb": 1e12, "mib": 2.0**20, "gib": 2.0**30, "tib": 2.0**40}


def bandwidth_bps(text: str) -> float:
    """`10Mbps` or `10Mbit/s` -> bits per second. InputError on zero, negative numbers and other units.

    Megabytes (`MB/s`, `MBps`) are refused: a capital B too often means bits.
    """
    cure = "give bits per second, such as 10Mbps, 500kbps or 1Gbps"
    number, unit = _split(text, "bandwidth", cure)
    require("B" not in unit, f"bandwidth '{text}' seems to count bytes; {cure}")
    unit = re.sub(r"bit(/s|ps|s)?$", "bps", unit.lower())
    require(unit in _BANDWIDTHS, f"bandwidth '{text}' has {_named(unit)}; {cure}")
    require(number > 0, f"bandwidth '{text}' is not above zero; {cure}")
    return number * _BANDWIDTHS[unit]


def duration_s(text: str) -> float:
    """`2ms` -> seconds; `0` needs no unit. InputError on negative numbers and other units."""
    cure = "give a time such as 2ms, 300us or 1s"
    number, unit = _split(text, "duration", cure)
    require(unit in _DURATIONS or (number == 0 and not unit), f"duration '{text}' has {_named(unit)}; {cure}")
    require(number >= 0, f"duration '{text}' is negative; {cure}")
    return number * _DURATIONS.get(unit, 1.0)


def memory_bytes(text: str) -> float:
    """`8GB` -> bytes, of 10^9; `GiB` and `MiB` are powers of two. InputError on zero and other units."""
    cure = "give memory such as 8GB, 500MB or 4GiB"
    number, unit = _split(text, "memory", cure)
    require(unit.lower() in _MEMORY, f"memory '{text}' has {_named(unit)}; {cure}")
    require(number > 0, f"memory '{text}' is not above zero; {cure}")
    return number * _MEMORY[unit.lower()]


def _named(unit: str) -> str:
    return f"an unknown unit '{unit}'" if unit else "no unit"


def _split(text: str, what: str, cure: str) -> tuple[float, str]:
    found = _NUMBER.fullmatch(text)
    number = float(found[1]) if found else math.nan
    require(found is not None and math.isfinite(number), f"{what} '{text}' is not a number with a unit; {cure}")
    assert found is not None
    return number, found[2]
