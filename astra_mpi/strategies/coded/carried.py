"""Keys and values of a block from what is known of an earlier one: its codes, or the states that they moved. For blocks
that their own codes would come too late for, or that have none.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.codec.carried import CarriedRows, carried
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.leaps import composed, leaps_of, moved_on
from astra_mpi.codec.predictor import Predictor
from astra_mpi.codec.tables import FarTable, has_tables, make_far
from astra_mpi.device.packed import pack, packs
from astra_mpi.device.xp import to_host
from astra_mpi.models.block import Block
from astra_mpi.strategies.coded.remote import projection, settle_table


def source_of(codec: Codec, i: int) -> int:
    """The last block before i whose codes have bits; 0: none has, and what enters block 0 is known."""
    return max((j for j in range(1, i) if codec.blocks[j].bits_per_token), default=0)


class Carried:
    """Of each block that needs one, a table: of its `source`, the block whose codes it takes, or of exact vectors."""

    def __init__(self, blocks: list[Block], codec: Codec, how: str, late: bool, kernels: ModuleType) -> None:
        """how: "table" or "gemm". late: also in blocks whose codes come late."""
        self.source: dict[int, int] = {}
        self.tables: dict[int, FarTable] = {}
        self.rows: dict[int, CarriedRows] = {}  # of blocks that no codes come before
        for i, block in enumerate(blocks):
            if i and ((late and codec.config.is_late(i)) or not codec.blocks[i].bits_per_token):
                self._add(i, block, codec, how, kernels)

    def _add(self, i: int, block: Block, codec: Codec, how: str, kernels: ModuleType) -> None:
        predictor, scratch = codec.blocks[i].predictor, block.scratch
        assert predictor is not None
        j = self.source[i] = source_of(codec, i)
        whole = carried(predictor, projection(block, codec.config.site, stored=True).on_host())
        weight, bias = (scratch.xp.asarray(array, scratch.dtype) for array in (whole.weight, whole.bias))
        if not j:
            self.rows[i] = CarriedRows(weight, bias, scratch, whole.key_norm)
            return
        of_codes = how == "table" and has_tables(codec.blocks[j])
        if not of_codes:
            whole = whole._replace(weight=weight, bias=bias, scratch=scratch)
        table = self.tables[i] = make_far("table" if of_codes else "gemm", codec.blocks[j], "normed", whole)
        settle_table(table, block, kernels)


class Leaps:
    """How states go over blocks whose codes have no bits. Per block: its predictor, from the states that are held
    before it; or, where a block makes none, what gives its far keys and values of them."""

    def __init__(self, blocks: list[Block], codec: Codec, kernels: ModuleType) -> None:
        #: None where no state is made
        self.predictors = [one.predictor for one in codec.blocks]
        #: of blocks in which states stay as they are
        self.rows: dict[int, CarriedRows] = {}
        held: Predictor | None = None  # from the last state to the one that would be made in the block before
        for i, own in enumerate(codec.blocks if leaps_of(codec) else ()):
            if own.predictor is None:
                continue
            predictor = own.predictor if held is None else composed(held, own.predictor)
            self.predictors[i], held = predictor, None
            if not own.bits_per_token:
                nothing = blocks[i].scratch.xp.zeros((1, own.n_codes), np.uint8)
                held = moved_on(predictor, to_host(own.decode(nothing, kernels))[0])
                self.predictors[i], self.rows[i] = None, _rows(held, blocks[i], codec.config.site, kernels)


def _rows(predictor: Predictor, block: Block, site: str, kernels: ModuleType) -> CarriedRows:
    whole, scratch = carried(predictor, projection(block, site, stored=True).on_host()), block.scratch
    weight: Any = whole.weight
    weight = (
        pack([weight], kernels, block.memory) if packs(weight, kernels) else scratch.xp.asarray(weight, scratch.dtype)
    )
    return CarriedRows(weight, scratch.xp.asarray(whole.bias, scratch.dtype), scratch, whole.key_norm)
