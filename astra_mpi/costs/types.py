"""What the type of products and the storage of weights change in the cost model (docs/explanation/planner.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from astra_mpi.costs.latency import Speeds

#: speeds of each type over those of float32, where nothing was measured: of an x86-64 server CPU that has instructions
#: for the type, AVX512-BF16 and VNNI; with AMX they are higher, and without either they are not above 1
_OVER_FLOAT32: dict[str, dict[str, float]] = {
    "float32": {},
    "bfloat16": {"gemm": 2.0, "attention": 2.0, "encode": 1.5, "states": 1.6},
    "int8": {"gemm": 3.0, "attention": 2.0, "encode": 1.5, "states": 1.6},
}
COMPUTES = tuple(_OVER_FLOAT32)
#: bytes of a weight as a file and the memory hold it; of blocks, their scales are counted in
_STORED_BYTES = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0, "int8": 1.0}
_STORED_BYTES |= {"q8_0": 8.5 / 8, "q4_1": 5 / 8, "q4_0": 4.5 / 8}
#: bytes of a weight that is packed for products of a type; in int8 blocks stay as they are
_PACKED_BYTES = {"bfloat16": 2.0, "int8": 1.0}
_BLOCKS = ("q8_0", "q4_0", "q4_1")


def weight_bytes(storage: str, compute: str) -> float:
    """Bytes of a weight in the memory of a rank, which a product of one row reads."""
    stored = _STORED_BYTES.get(storage, 4.0)
    return stored if storage in _BLOCKS and compute == "int8" else _PACKED_BYTES.get(compute, stored)


def kept_bytes(compute: str, d_head: int) -> float:
    """Bytes of a number of the keys and values that decoding keeps: as narrow as products, int8 with a factor of every
    token and head."""
    return {"bfloat16": 2.0, "int8": 1 + 4 / d_head}.get(compute, 4.0)


def assumed(speeds: Speeds, compute: str) -> Speeds:
    """Speeds of products of `compute` for a rank that has these in float32."""
    faster = {kind: getattr(speeds, kind) * over for kind, over in _OVER_FLOAT32[compute].items()}
    return replace(speeds, **faster, weights=speeds.stream * 4 / weight_bytes("float32", compute))


def stored(speeds: Speeds, compute: str, storage: str) -> Speeds:
    """Speeds of products of `compute`, measured or assumed with weights that were float32, for weights stored so: a
    token's products take as long as reading the weights does."""
    before, now = weight_bytes("float32", compute), weight_bytes(storage, compute)
    return replace(speeds, weights=(speeds.weights or speeds.stream) * before / now)


def storage_of(weights: Mapping[str, Any]) -> str:
    """What most of the matrices are stored as."""
    sizes: dict[str, int] = {}
    for weight in weights.values():
        if len(weight.shape) == 2:
            kind = str(getattr(weight, "dtype", "float32"))
            sizes[kind] = sizes.get(kind, 0) + weight.shape[0] * weight.shape[1]
    return max(sizes, key=lambda kind: sizes[kind], default="float32")
