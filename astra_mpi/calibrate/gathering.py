"""Codebooks from the ranks that fitted them to rank 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mpi4py import MPI

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook, Transform
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.kinds.scalar import HEAD

_TAG = 23


def gathered(
    comm: MPI.Comm, mine: Mapping[int, BlockCodec], shares: Sequence[range], config: CodecConfig
) -> tuple[BlockCodec, ...] | None:
    """Collective: all blocks' codebooks on rank 0, None elsewhere. mine: those of this rank's share of the blocks."""
    rank, n_books = comm.Get_rank(), 2 if config.site == "kv" else 1
    if rank:
        for i in shares[rank]:
            for book in mine[i].codebooks:
                _send(comm, book)
        return None
    blocks = dict(mine)
    for r in range(1, comm.Get_size()):
        for i in shares[r]:
            blocks[i] = BlockCodec(tuple(_received(comm, r, config.kind) for _ in range(n_books)))
    return tuple(blocks[i] for i in range(len(blocks)))


def _send(comm: MPI.Comm, book: Codebook) -> None:
    ordinary = -1 if book.ordinary is None else book.ordinary
    stages = 0 if book.head is None else len(book.head.entries)
    columns = 0 if book.basis is None else book.basis.shape[1]
    comm.Send(
        np.array([*book.entries.shape, book.width, columns, book.transform is not None, stages, ordinary]), 0, _TAG
    )
    comm.Send(np.array([book.error_growth]), 0, _TAG)
    comm.Send(book.entries, 0, _TAG)
    if book.basis is not None:
        comm.Send(book.basis, 0, _TAG)
    if book.transform is not None:
        for array in (*book.transform, np.asarray(book.bits)):
            comm.Send(array, 0, _TAG)
    if book.head is not None:
        comm.Send(np.array([book.head.entries.shape[1]]), 0, _TAG)
        comm.Send(book.head.entries, 0, _TAG)


def _received(comm: MPI.Comm, source: int, kind: str) -> Codebook:
    shape, growth = np.empty(8, np.int64), np.empty(1)
    comm.Recv(shape, source, _TAG)
    comm.Recv(growth, source, _TAG)
    entries = np.empty(shape[:3], np.float32)
    comm.Recv(entries, source, _TAG)
    width, columns, transformed = int(shape[3]), int(shape[4]), bool(shape[5])
    basis = np.empty((width, columns), np.float32) if columns else None
    if basis is not None:
        comm.Recv(basis, source, _TAG)
    transform = bits = None
    if transformed:
        n_codes = len(entries)
        shapes = ((width, n_codes), (n_codes, width), (width,))
        transform, bits = Transform(*(np.empty(wanted, np.float32) for wanted in shapes)), np.empty(n_codes, np.uint8)
        for array in (*transform, bits):
            comm.Recv(array, source, _TAG)
    head = None
    if stages := int(shape[6]):
        size = np.empty(1, np.int64)
        comm.Recv(size, source, _TAG)
        first = np.empty((stages, int(size[0]), width), np.float32)
        comm.Recv(first, source, _TAG)
        head = Codebook(HEAD, first, width)
    return Codebook(
        kind, entries, width, basis, float(growth[0]), transform, bits, head, None if shape[7] < 0 else int(shape[7])
    )
