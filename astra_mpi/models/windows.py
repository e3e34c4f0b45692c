"""Sliding windows as config.json states them: per block, how far back a token sees."""

from __future__ import annotations

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.config import require

KINDS = ("full_attention", "sliding_attention")


def windows(hf: HFConfig, n_layers: int, size: int | None, sliding: list[bool]) -> tuple[int, ...]:
    """Per block the window of this size, or 0; () where no block has one.

    `layer_types`, where config.json has them, say which blocks have one, else `sliding`.
    """
    kinds = hf.get("layer_types")
    if kinds is not None:
        known = isinstance(kinds, list) and len(kinds) == n_layers and all(kind in KINDS for kind in kinds)
        require(known, f"layer_types = {shown(kinds)} is not supported; give {n_layers}, each {' or '.join(KINDS)}")
        sliding = [kind == KINDS[1] for kind in kinds]
    if size is None or not any(sliding):
        return ()
    return tuple(size if slides else 0 for slides in sliding)


def sliding_window(hf: HFConfig) -> int | None:
    """Tokens that a window holds, its own among them, or None."""
    return None if hf.get("sliding_window") is None else hf.integer("sliding_window")
