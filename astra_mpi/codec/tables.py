"""Projected codebooks: far keys and values from codes, without the projection of far tokens.

A far token's [K^ | V^] depends on its codes alone, so the projection is applied to the codebooks once, at load. With a
LayerNorm in between, entries are made mean-free first, so that the mean vanishes exactly:
[K^ | V^] = (sum_c table_c[code_c]) / sigma + (beta W + b), where sigma comes from look-ups too.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.kind import Sigma2
from astra_mpi.config import require
from astra_mpi.device.formats.floats import BFloat16
from astra_mpi.device.memory import Memory
from astra_mpi.device.scratch import Scratch
from astra_mpi.device.weights import Matrix, Narrow, SideBySide, product
from astra_mpi.device.xp import beside, module_of, to_host

#: residual stages look sigma up in Gram tables of up to this size per block; beyond it x^ is rebuilt
GRAM_LIMIT_BYTES = 16 << 20

KeyNorm = Callable[[np.ndarray, ModuleType], None]


class Norm(NamedTuple):
    """The normalisation between what is quantised and what is projected."""

    centred: bool  # LayerNorm, else RMSNorm
    weight: np.ndarray  # (D,)
    bias: np.ndarray | None  # (D,)
    eps: float


class Projection(NamedTuple):
    """From quantised vectors to [K | V]: optional normalisation, then a linear layer."""

    norm: Norm | None
    weight: Matrix  # (D, 2 d_kv)
    bias: np.ndarray  # (2 d_kv,)
    scratch: Scratch | None = None  # where narrow weights are widened
    key_norm: KeyNorm | None = None  # of what comes out, keys first

    def on_host(self) -> Projection:
        """The same as NumPy arrays, to build tables from."""
        norm = self.norm
        if norm is not None:
            bias = None if norm.bias is None else to_host(norm.bias)
            norm = norm._replace(weight=to_host(norm.weight), bias=bias)
        weight = self.weight
        wide = np.asarray(weight) if isinstance(weight, Narrow | SideBySide) else to_host(weight)
        return Projection(norm, wide, to_host(self.bias), key_norm=self.key_norm)


class FarTable:
    """Turns codes (n, C) into far keys and values; here for site "kv", where decoding them is all there is to do."""

    #: (K, 2 d_kv) where one code fixes a far token's key and value: what counted keys need; keys before their norm
    rows: np.ndarray | None = None

    def __init__(self, codec: BlockCodec) -> None:
        self.codec = codec

    def round_to(self, dtype: type) -> None:
        """Store tables in the precision of the model."""

    def halve(self) -> None:
        """Store tables that are summed up in bfloat16: half the memory, and half of what a sum reads."""

    def move(self, memory: Memory) -> None:
        """Keep tables, which are read row by row at random, where weights are."""

    def far_kv(self, codes: np.ndarray, kernels: ModuleType) -> np.ndarray:
        """Codes (n, C) -> [K^ | V^] (n, 2 d_kv), a new array."""
        return self.codec.decode(codes, kernels)


class Projected(FarTable):
    """From codes of what the projection takes."""

    def __init__(self, codec: BlockCodec, projection: Projection) -> None:
        super().__init__(codec)
        self.key_norm = projection.key_norm

    def normed(self, kv: np.ndarray, kernels: ModuleType) -> np.ndarray:
        """kv (n, 2 d_kv) with its keys normalised, in place, where the model does."""
        if self.key_norm is not None:
            self.key_norm(kv[:, : kv.shape[1] // 2], kernels)
        return kv


class FarGemm(Projected):
    """Rebuild the far tokens, normalise and project them: the paper's way."""

    def __init__(self, codec: BlockCodec, projection: Projection) -> None:
        super().__init__(codec, projection)
        self.projection, self.scratch = projection, projection.scratch or Scratch()

    def far_kv(self, codes: np.ndarray, kernels: ModuleType) -> np.ndarray:
        norm, weight, bias = self.projection[:3]
        x = self.codec.decode(codes, kernels).astype(bias.dtype, copy=False)  # (n, D)
        if norm is not None and norm.centred:
            x = kernels.layer_norm(x, norm.weight, norm.bias, norm.eps)
        elif norm is not None:
            x = kernels.rms_norm(x, norm.weight, norm.eps)
        out = module_of(x).empty((len(x), weight.shape[1]), x.dtype)
        kv = product(x, weight, out, kernels, self.scratch)
        kv += bias
        return self.normed(kv, kernels)


class FarRow(Projected):
    """One code per token: its finished row."""

    rows: np.ndarray

    def __init__(self, codec: BlockCodec, projection: Projection) -> None:
        super().__init__(codec, projection)
        (book,) = codec.codebooks
        x = book.rule.combine(book.entries.astype(np.float64), codec.width)  # (K, D)
        norm, bias = projection.norm, projection.bias
        if norm is not None:
            x = x - x.mean(axis=1, keepdims=True) if norm.centred else x
            x = x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + norm.eps) * norm.weight
            x = x if norm.bias is None else x + norm.bias
        self.rows = (x @ np.asarray(projection.weight) + bias).astype(np.float32)

    def round_to(self, dtype: type) -> None:
        self.rows = self.rows.astype(dtype, copy=False)

    def move(self, memory: Memory) -> None:
        self.rows = memory.keep(self.rows)

    def far_kv(self, codes: np.ndarray, kernels: ModuleType) -> np.ndarray:
        return self.normed(beside(codes, self.rows)[codes[:, 0]], kernels)


class FarSum(Projected):
    """A sum of projected table rows, over sigma."""

    def __init__(self, codec: BlockCodec, projection: Projection) -> None:
        super().__init__(codec, projection)
        (book,) = codec.codebooks
        norm, weight, bias = projection.norm, np.asarray(projection.weight), projection.bias
        gain = weight.astype(np.float64) if norm is None else norm.weight[:, None].astype(np.float64) * weight
        shift = norm.bias @ weight.astype(np.float64) if norm is not None and norm.bias is not None else 0.0
        self.bias = (bias + shift).astype(np.float32)
        self.tables = _tables(book, gain, norm is not None and norm.centred)
        self.eps = 0.0 if norm is None else norm.eps
        self.sigma2 = None if norm is None else book.rule.sigma2(book, norm.centred)

    def round_to(self, dtype: type) -> None:
        self.tables = self.tables.astype(dtype, copy=False)

    def halve(self) -> None:
        self.tables = BFloat16.narrow_numbers(self.tables)

    def move(self, memory: Memory) -> None:
        self.tables = memory.keep(self.tables)

    def far_kv(self, codes: np.ndarray, kernels: ModuleType) -> np.ndarray:
        scale = None
        if self.sigma2 is not None:
            sigma = module_of(codes).sqrt(self.sigma2(codes, kernels) + self.eps)
            scale = (1.0 / sigma).astype(np.float32)
        return self.normed(kernels.table_sum(codes, self.tables, scale, self.bias), kernels)


def make_far(how: str, codec: BlockCodec, site: str, projection: Projection) -> FarTable:
    """`how` = "table" or "gemm", for a block's codebooks at `site`. InputError on tables of what is no sum."""
    require(how in ("table", "gemm"), f"remote = '{how}' is unknown; use table or gemm")
    if site == "kv":
        return FarTable(codec)
    if how == "gemm":
        return FarGemm(codec, projection)
    require(has_tables(codec), f"codes of kind '{codec.codebooks[0].kind}' have no tables; use remote = gemm or auto")
    return FarRow(codec, projection) if codec.n_codes == 1 else FarSum(codec, projection)


def has_tables(codec: BlockCodec) -> bool:
    """Whether far keys and values can come from projected tables."""
    return codec.additive or (codec.n_codes == 1 and codec.codebooks[0].transform is None)


def _tables(book: Codebook, gain: np.ndarray, centred: bool) -> np.ndarray:
    """(C, K, 2 d_kv): entries (mean-free if `centred`) times gain (D, 2 d_kv), in float64 until the end."""
    n_codes, size, width = book.entries.shape
    tables = np.empty((n_codes, size, gain.shape[1]), np.float32)
    means, columns = [], gain.sum(axis=0)
    for c, entries in enumerate(inside(book)):
        part = gain[book.rule.span(c, width)]
        row = entries[:, : len(part)] @ part  # (K, 2 d_kv)
        if centred:
            row -= entries.sum(axis=1, keepdims=True) / book.width * columns
        means.append(row.mean(axis=0))
        tables[c] = row - means[-1]
    # Groups share an offset of the activations and would cancel it only in their sum: the sum's mean is spread instead.
    tables += (np.sum(means, axis=0) / n_codes).astype(np.float32)
    return tables


def inside(book: Codebook) -> np.ndarray:
    """(C, K, W) float64, zero where groups reach beyond the vector's width."""
    entries = book.entries.astype(np.float64)
    for c, of_code in enumerate(entries):
        n_inside = len(range(book.width)[book.rule.span(c, entries.shape[2])])
        of_code[:, n_inside:] = 0
    return entries


def gram_sums(book: Codebook, centred: bool) -> Sigma2:
    """Variance of x^ from codes, or the mean square if not `centred`, where the entries of a token overlap."""
    entries = book.entries - book.entries.mean(axis=2, keepdims=True) if centred else book.entries
    n_codes, size, _ = entries.shape
    if (n_codes * size) ** 2 * 4 <= GRAM_LIMIT_BYTES:
        gram = np.einsum("ikd,jld->ijkl", entries, entries, optimize=True)
        gram = np.ascontiguousarray(gram, np.float32)
        return lambda codes, kernels: kernels.gram_sum(codes, gram) / book.width

    def rebuilt(codes: np.ndarray, kernels: ModuleType) -> np.ndarray:
        x = kernels.decode_residual(codes, entries)
        return module_of(x).einsum("nd,nd->n", x, x).astype(np.float64) / book.width

    return rebuilt


class GroupSums:
    """The same where they lie side by side, from two scalars per group and code: in float64, because a common offset
    cancels here.
    """

    def __init__(self, book: Codebook, centred: bool) -> None:
        entries = inside(book)
        self.squares = (entries * entries).sum(axis=2) / book.width  # (C, K)
        self.sums = entries.sum(axis=2) / book.width if centred else None

    def __call__(self, codes: np.ndarray, kernels: ModuleType) -> np.ndarray:
        group = module_of(codes).arange(codes.shape[1])
        mean_square = beside(codes, self.squares)[group, codes].sum(axis=1)
        if self.sums is None:
            return mean_square
        return mean_square - beside(codes, self.sums)[group, codes].sum(axis=1) ** 2


def distinct(codes: np.ndarray, codebook_size: int, kernels: ModuleType) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n, 1) -> the distinct ones (u,), ascending, and the logarithm of their counts (u,) float32."""
    counts = kernels.count_codes(codes, codebook_size)
    values = np.flatnonzero(counts)
    return values, np.log(counts[values]).astype(np.float32)
