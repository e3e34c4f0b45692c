"""How a rank's states go over blocks whose codes have no bits (codec/leaps.py)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.codec.carried import CarriedRows, carried
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.leaps import composed, leaps_of, moved_on
from astra_mpi.codec.predictor import Predictor
from astra_mpi.device.packed import pack, packs
from astra_mpi.device.xp import to_host
from astra_mpi.models.block import Block
from astra_mpi.strategies.remote import projection


class Leaps:
    """Per block: its predictor, from the states that are held before it; or, where a block makes none, what gives its
    far keys and values of them."""

    def __init__(self, blocks: list[Block], codec: Codec, kernels: ModuleType) -> None:
        self.predictors = [one.predictor for one in codec.blocks]
        #: of blocks in which states stay as they are
        self.rows: dict[int, CarriedRows] = {}
        held: Predictor | None = None  # from the last state to the one that would be made in the block before
        for i, own in enumerate(codec.blocks if leaps_of(codec) else ()):
            if own.predictor is None:
                continue
            predictor = self.predictors[i] = own.predictor if held is None else composed(held, own.predictor)
            held = None
            if not own.bits_per_token:
                nothing = blocks[i].scratch.xp.zeros((1, own.n_codes), np.uint8)
                held = moved_on(predictor, to_host(own.decode(nothing, kernels))[0])
                self.rows[i] = _rows(held, blocks[i], codec.config.site, kernels)


def _rows(predictor: Predictor, block: Block, site: str, kernels: ModuleType) -> CarriedRows:
    whole, scratch = carried(predictor, projection(block, site, stored=True).on_host()), block.scratch
    weight: Any = whole.weight
    weight = pack([weight], kernels) if packs(weight, kernels) else scratch.xp.asarray(weight, scratch.dtype)
    return CarriedRows(weight, scratch.xp.asarray(whole.bias, scratch.dtype), scratch, whole.key_norm)
