"""How far keys and values come from codes: projected tables or the projection GEMM. Decided once, at load."""

from __future__ import annotations

import time
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.expected import Expected
from astra_mpi.codec.tables import FarTable, Norm, Projection, has_tables, make_far
from astra_mpi.config import require
from astra_mpi.device.xp import settle
from astra_mpi.errors import collective
from astra_mpi.models.block import Block

if TYPE_CHECKING:
    from mpi4py import MPI

WAYS = ("gemm", "table")
#: tables larger than this over all blocks are not built unless asked for
TABLE_LIMIT_BYTES = 2 << 30
_PROBE_TOKENS = 256


class RemoteTables:
    """One `FarTable` per block, all of the same way (`how`)."""

    def __init__(self, blocks: list[Block], codec: Codec, how: str, kernels: ModuleType) -> None:
        self.how = how
        self.tables = [_far_table(block, codec, i, how, kernels) for i, block in enumerate(blocks)]


def choose_remote(comm: MPI.Comm, blocks: list[Block], codec: Codec, kernels: ModuleType, how: str) -> RemoteTables:
    """Collective: `how` = "table", "gemm", or "auto": rank 0 times both on block 0 and decides for all ranks."""
    require(how in ("auto", *WAYS), f"remote = '{how}' is unknown; use auto, table or gemm")
    coded = _first_coded(codec)
    if how == "auto" and not (coded.additive if codec.config.predicts else has_tables(coded)):
        how = "gemm"
    if how == "auto" and codec.config.predicts:  # tables are no less work, but most of it is done while codes travel
        how = "gemm" if _table_bytes(blocks, codec) > TABLE_LIMIT_BYTES else "table"
    if how == "auto":
        choice = np.zeros(1, dtype=np.int32)
        with collective(comm):
            if comm.Get_rank() == 0:
                choice[0] = _faster(blocks, codec, kernels)
        comm.Bcast(choice, root=0)
        how = WAYS[choice[0]]
    with collective(comm):  # a rank may have too little memory for the tables
        remote = RemoteTables(blocks, codec, how, kernels)
    return remote  # noqa: RET504, what `with` may swallow


def _first_coded(codec: Codec) -> BlockCodec:
    """Block 0 sends nothing where blocks have maps."""
    return codec.blocks[int(codec.config.has_maps and len(codec.blocks) > 1)]


def _faster(blocks: list[Block], codec: Codec, kernels: ModuleType) -> int:
    """Index into WAYS of the faster way for `_PROBE_TOKENS` far tokens."""
    config, coded = codec.config, _first_coded(codec)
    if config.site != "kv" and _table_bytes(blocks, codec) > TABLE_LIMIT_BYTES:
        return WAYS.index("gemm")
    sizes = np.concatenate([np.full(book.n_codes, book.size) for book in coded.codebooks])
    draw = np.random.default_rng(0).integers(0, sizes, (_PROBE_TOKENS, len(sizes)))
    codes = blocks[0].scratch.xp.asarray(draw.astype(np.uint8 if coded.size <= 256 else np.uint16))
    i = codec.blocks.index(coded)
    return int(np.argmin([_time_s(_far_table(blocks[i], codec, i, how, kernels), codes, kernels) for how in WAYS]))


def _table_bytes(blocks: list[Block], codec: Codec) -> int:
    entries = sum(book.entries.shape[0] * book.entries.shape[1] for book in _first_coded(codec).codebooks)
    return int(entries * 2 * blocks[0].config.d_kv * 4 * len(blocks))


def _time_s(table: FarTable, codes: np.ndarray, kernels: ModuleType) -> float:
    settle(table.far_kv(codes, kernels))
    laps = []
    for _ in range(5):
        start = time.perf_counter()
        settle(table.far_kv(codes, kernels))
        laps.append(time.perf_counter() - start)
    return float(np.median(laps))


def projection(block: Block, site: str, stored: bool = False) -> Projection:
    """From what is sent at `site` to keys and values; stored: with weights as they are stored, not packed."""
    norm = None
    if site == "hidden" and block.normalises_input:
        weight, bias = block.w["norm1.weight"], block.w.get("norm1.bias")
        norm = Norm(not block.recipe.rms, weight, bias, block.config.norm_eps)
    return Projection(norm, block.stored_kv if stored else block.w_kv, block.b_kv, block.scratch, block.key_norm)


def _far_table(block: Block, codec: Codec, i: int, how: str, kernels: ModuleType) -> FarTable:
    own, site = codec.blocks[i], codec.config.site
    stored = None if how == "gemm" else projection(block, site, stored=True)
    table: FarTable
    if codec.config.predicts:
        table = Expected(own, projection(block, site), stored)
    else:
        table = make_far(how, own, site, projection(block, site) if stored is None else stored.on_host())
    settle_table(table, block, kernels)
    return table


def settle_table(table: FarTable, block: Block, kernels: ModuleType) -> None:
    """Its numbers as the model computes, and in memory where the block's weights are."""
    table.round_to(block.scratch.dtype)
    if getattr(kernels, "compute", "float32") != "float32":
        table.halve()
    if block.scratch.xp is np:
        table.move(block.memory)
