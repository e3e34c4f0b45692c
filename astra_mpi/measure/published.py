"""Published figures of arXiv 2505.19342: speed-up over one device, approx., read off plots (+-0.002).

ViT-Base shape (12 blocks, D = 768); network and clock are the paper's simulation, which charges one local payload per
exchange and no latency. None of them is a measurement of this project.
"""

from __future__ import annotations

from typing import Any

from astra_mpi.codec.config import KINDS

RANKS, TOKENS, MBPS = 4, 1024, 10  # where the other axes stand while one moves
CONDITIONS = "ViT-Base, P = 4, T = 1024, 10 Mbps but for the axis; arXiv 2505.19342, approx., read off"

#: axis -> where it stands, and per scheme the speed-ups there
PUBLISHED: dict[str, dict[str, Any]] = {
    "bandwidth": {  # Mbps
        "at": [10, 20, 50, 100, 200, 500],
        "ranks": RANKS,
        "tokens": TOKENS,
        "speedup": {
            "ASTRA G=1": [2.65, 2.74, 2.80, 2.83, 2.84, 2.84],
            "ASTRA G=16": [1.27, 1.72, 2.20, 2.43, 2.56, 2.64],
            "ASTRA G=32": [0.83, 1.27, 1.87, 2.22, 2.44, 2.61],
            "BP+AG Nb=1": [0.17, 0.33, 0.69, 1.09, 1.55, 2.07],
            "SP": [0.015, 0.031, 0.076, 0.15, 0.28, 0.63],
            "TP": [0.008, 0.016, 0.038, 0.076, 0.15, 0.35],
        },
    },
    "ranks": {
        "at": [2, 4, 6, 8],
        "mbps": MBPS,
        "tokens": TOKENS,
        "speedup": {"ASTRA G=1": [1.89, 2.65, 3.48, 3.88]},
    },
    "tokens": {
        "at": [256, 512, 1024, 2048, 4096],
        "mbps": MBPS,
        "ranks": RANKS,
        "speedup": {"ASTRA G=1": [1.23, 1.92, 2.65, 3.50, 3.84]},
    },
}


def scheme_of(strategy: str, codec: dict[str, Any]) -> str | None:
    """The published scheme that a strategy with this codec is, or None; codebooks of any size count."""
    kind = KINDS.get(codec.get("kind", ""))
    if strategy == "astra" and kind and kind.published and codec.get("site") == "hidden":
        return f"ASTRA {kind.label(codec)}"
    return {"sp": "SP", "tp": "TP", "bp": "BP+AG Nb=1", "bp:ag": "BP+AG Nb=1"}.get(strategy)
