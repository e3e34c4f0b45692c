"""The messages of a block's codes, as they come from all ranks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.device.xp import module_of


def unpacked(
    codec: BlockCodec,
    messages: Sequence[np.ndarray],
    counts: np.ndarray,
    heard: Collection[int],
    missing: np.ndarray,
    mean: np.ndarray,
    near: Callable[[int], np.ndarray | None],
    kernels: Any,
) -> np.ndarray:
    """Messages (P) of counts (P,) tokens each -> codes (sum n_r, C), rank after rank.

    heard: ranks whose messages are here. missing (P,): theirs did not come, and mean (1, C) stands for each token. All
    others are zeros. near(rank): which of its tokens have more codes, (n_r,); None: all.
    """
    masks = [near(rank) for rank in range(len(messages))]
    whole = all(8 * len(message) == n * codec.bits_per_token for message, n in zip(messages, counts, strict=True))
    alike = all(mask is None for mask in masks) and len(heard) == len(messages) and not missing.any()
    if whole and alike:  # one after another, they are one message
        return codec.unpack(module_of(mean).concatenate(messages), int(counts.sum()), kernels)
    parts = []
    for rank, (message, n) in enumerate(zip(messages, counts, strict=True)):
        if missing[rank]:
            parts.append(mean.repeat(int(n), axis=0))
        elif rank in heard:
            parts.append(codec.unpack(message, int(n), kernels, masks[rank]))
        else:
            parts.append(module_of(mean).zeros((int(n), codec.n_codes), mean.dtype))
    codes: np.ndarray = module_of(mean).concatenate(parts)
    return codes
