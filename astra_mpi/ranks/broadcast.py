"""From rank 0 to all ranks: text, numbers, and the inputs of a batch; texts of all ranks. Buffers only, no pickle."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI


def broadcast_text(comm: MPI.Comm, text: str) -> str:
    """Collective: rank 0's `text` on every rank."""
    data = np.frombuffer(text.encode(), dtype=np.uint8).copy()
    size = np.array([data.size], dtype=np.int64)
    comm.Bcast(size, root=0)
    if comm.Get_rank() != 0:
        data = np.empty(size[0], dtype=np.uint8)
    comm.Bcast(data, root=0)
    return data.tobytes().decode()


def gather_texts(comm: MPI.Comm, text: str) -> list[str]:
    """Collective: the texts of all ranks on every rank."""
    mine, counts = np.frombuffer(text.encode(), np.uint8), np.empty(comm.Get_size(), np.int64)
    comm.Allgather(np.array([mine.size], np.int64), counts)
    every = np.empty(int(counts.sum()), np.uint8)
    comm.Allgatherv(mine, [every, counts])
    return [part.tobytes().decode() for part in np.split(every, np.cumsum(counts)[:-1])]


def broadcast_line(comm: MPI.Comm, text: str | None, every_s: float = 0.005) -> str | None:
    """Collective: rank 0's `text` on every rank, or None. The others wait for it without work, for as long as it takes:
    a person may be typing it."""
    size = np.array([-1 if text is None else len(text.encode())], np.int64)
    request = comm.Ibcast(size, root=0)
    while not request.Test():
        time.sleep(every_s)
    return None if size[0] < 0 else broadcast_text(comm, text or "")


def broadcast_ids(comm: MPI.Comm, ids: np.ndarray | None) -> np.ndarray:
    """Collective: rank 0's ids (T,) int64 on every rank (None elsewhere)."""
    size = np.array([0 if ids is None else len(ids)], np.int64)
    comm.Bcast(size, root=0)
    return broadcast_integers(comm, ids, int(size[0]))


def broadcast_integers(comm: MPI.Comm, values: np.ndarray | None, n: int) -> np.ndarray:
    """Collective: rank 0's `values` (n,) int64 on every rank (None elsewhere)."""
    known = np.zeros(n, np.int64)
    if values is not None:
        known[:] = values
    comm.Bcast(known, root=0)
    return known


def broadcast_batch(
    comm: MPI.Comm, inputs: np.ndarray | None, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Collective: rank 0's batch on every rank (None elsewhere).

    Token ids int32 (B, T), or ids and types (B, T, 2), with mask bool (B, T): one bit per position travels, and
    ids up to the last kept one of each sequence, for a family may count dropped ones before it; others arrive as 0.
    Or float32 images (B, C, H, W) without a mask.
    """
    header = np.zeros(4, dtype=np.int64)
    if inputs is not None:
        header[: inputs.ndim] = inputs.shape
    comm.Bcast(header, root=0)
    if header[3] == 0:  # less than four axes: tokens
        return _broadcast_tokens(comm, header[: 3 if header[2] else 2], inputs, mask)
    images = np.empty(header, dtype=np.float32) if inputs is None else np.ascontiguousarray(inputs, dtype=np.float32)
    comm.Bcast(images, root=0)
    return images, None


def _broadcast_tokens(
    comm: MPI.Comm, shape: np.ndarray, inputs: np.ndarray | None, mask: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    n, inner = int(shape[:2].prod()), shape[2:]
    bits = np.empty(-(-n // 8), dtype=np.uint8) if mask is None else np.packbits(mask)
    comm.Bcast(bits, root=0)
    keep = np.unpackbits(bits, count=n).astype(bool).reshape(shape[:2])  # (B, T)
    sent = np.cumsum(keep[:, ::-1], axis=1)[:, ::-1] > 0
    kept = np.empty((int(sent.sum()), *inner), dtype=np.int32)
    if inputs is not None:
        kept[:] = inputs[sent]
    comm.Bcast(kept, root=0)
    ids = np.zeros(shape, dtype=np.int32)
    ids[sent] = kept
    return ids, keep
