"""A block as the compiled token reads it: formats and addresses of its matrices, addresses of its vectors."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.device.formats.floats import BFloat16, Float16
from astra_mpi.device.formats.int8 import Int8
from astra_mpi.device.memory import Memory
from astra_mpi.device.packed import Packed
from astra_mpi.device.weights import SideBySide, mapped_file
from astra_mpi.kernels.aligned import LINE, address
from astra_mpi.kernels.cpu.token import HAS_BLOCKS
from astra_mpi.kernels.cpu.token import tables as t
from astra_mpi.models.block import Block
from astra_mpi.models.decoder import Decoder
from astra_mpi.models.recipe import QK_NORMS

_PACKED = {"bfloat16": t.PACKED_BFLOAT16, "int8": t.PACKED_INT8}
_BLOCKS = {"q8_0": t.Q8_0, "q4_0": t.Q4_0, "q4_1": t.Q4_1}
_NARROW: dict[type, int] = {Float16: t.FLOAT16, BFloat16: t.BFLOAT16, Int8: t.INT8}
_MATRICES = {t.O: "o", t.FC1: "fc1", t.GATE: "gate", t.FC2: "fc2"}
_VECTORS = {
    t.B_O: "o.bias",
    t.B_FC1: "fc1.bias",
    t.B_GATE: "gate.bias",
    t.B_FC2: "fc2.bias",
    t.NORM1: "norm1.weight",
    t.NORM1_BIAS: "norm1.bias",
    t.NORM2: "norm2.weight",
    t.NORM2_BIAS: "norm2.bias",
    t.POST1: "post1.weight",
    t.POST1_BIAS: "post1.bias",
    t.POST2: "post2.weight",
    t.POST2_BIAS: "post2.bias",
}
#: as in the kernel `activate`
_ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu", "quick_gelu")


class BlockTable:
    """Row (N_BLOCK,) int64 of one block, with the arrays that it points to."""

    def __init__(self, block: Block) -> None:
        """ValueError where a matrix is of a format that the compiled token does not read."""
        self.row = np.zeros(t.N_BLOCK, np.int64)
        self._kept: list[np.ndarray | None] = []
        w_qkv, column = block.w_qkv, 0
        for which, matrix in enumerate(w_qkv.matrices if isinstance(w_qkv, SideBySide) else (w_qkv,)):
            self._matrix(block, which, matrix, column)
            column += matrix.shape[1]
        for which, name in _MATRICES.items():
            if f"{name}.weight" in block.w:
                self._matrix(block, which, block.layers[name], 0)
        for place, name in _VECTORS.items():
            self._vector(place, block.w.get(name))
        self._vector(t.B_QKV, block.b_qkv)
        if block.query_norm is not None and block.key_norm is not None:
            self._vector(t.Q_NORM, block.query_norm.weight)
            self._vector(t.K_NORM, block.key_norm.weight)

    def _matrix(self, block: Block, which: int, matrix: Any, column: int) -> None:
        fields = matrix_fields(matrix, block.kernels, block.memory, column, self._kept)
        self.row[which * t.N_MATRIX : which * t.N_MATRIX + len(fields)] = fields

    def _vector(self, place: int, vector: np.ndarray | None) -> None:
        if vector is not None:
            vector = np.ascontiguousarray(vector, np.float32)
            self._kept.append(vector)
            self.row[place] = address(vector)


class HeadTable(BlockTable):
    """The last norm and the head as one more block, of which the first step is all there is."""

    def __init__(self, family: Decoder) -> None:
        self.row, self._kept = np.zeros(t.N_BLOCK, np.int64), []
        if not family.recipe_of(family.config).norm_first:
            raise ValueError("the last norm is read in blocks that normalise first")
        matrix, transposed = family.head_matrix
        fields = matrix_fields(matrix, family.kernels, family.memory, 0, self._kept, transposed)
        self.row[: len(fields)] = fields
        self._vector(t.NORM1, family.w["norm.weight"])
        self._vector(t.NORM1_BIAS, family.w.get("norm.bias"))


def matrix_fields(
    matrix: Any,
    kernels: ModuleType,
    memory: Memory,
    column: int,
    kept: list[np.ndarray | None],
    transposed: bool = False,
) -> list[int]:
    """A matrix in N_MATRIX columns of a table, of which the arrays are appended to `kept`; transposed: its rows are
    outputs. ValueError if the compiled token does not read it."""
    m, n = matrix.shape[::-1] if transposed else matrix.shape
    if isinstance(matrix, np.ndarray) and matrix.dtype == np.float32 and matrix.strides[1] == 4:
        kept.append(matrix)
        kind = t.FLOAT32_ROWS if transposed else t.FLOAT32
        return [kind, address(matrix), m, n, matrix.strides[0], 0, column]
    if isinstance(matrix, Packed) and not transposed:
        words, scale = matrix.strips.words, matrix.strips.scale
        kept += [words, scale]
        return [_PACKED[matrix.dtype], address(words), m, n, LINE * matrix.strips.n_words, address(scale), column]
    in_int8 = HAS_BLOCKS and getattr(kernels, "compute", "float32") == "int8"
    if isinstance(matrix, Blocks) and in_int8 and matrix.by_rows == transposed:
        if mapped_file(matrix) is not None:
            matrix.move(memory)
        kept.append(matrix.values)
        return [_BLOCKS[matrix.dtype], address(matrix.values), m, n, matrix.values.strides[0], 0, column]
    if type(matrix) in _NARROW and not transposed:
        values, scale = matrix.values, matrix.scale
        scale = None if scale is None else np.ascontiguousarray(scale[0], np.float32)
        kept += [values, scale]
        return [_NARROW[type(matrix)], address(values), m, n, values.strides[0], address(scale), column]
    raise ValueError(f"{type(matrix).__name__} is not read by the compiled token")


def model_numbers(block: Block, family: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """What all blocks of a model have in common: (N_MODEL,) int64 and (N_FACTORS,) float32."""
    config, recipe = block.config, block.recipe
    numbers, factors = np.zeros(t.N_MODEL, np.int64), np.zeros(t.N_FACTORS, np.float32)
    values = {
        t.D_MODEL: config.d_model,
        t.N_HEADS: config.n_heads,
        t.N_KV_HEADS: config.n_kv_heads,
        t.D_HEAD: config.d_head,
        t.D_FF: config.d_ff,
        t.NORM_FIRST: recipe.norm_first,
        t.RMS: recipe.rms,
        t.GATED: recipe.gated,
        t.OUTPUT_NORMS: recipe.output_norms,
        t.PARALLEL: recipe.parallel,
        t.SHARED_NORM: recipe.shared_norm,
        t.QK_NORM: QK_NORMS.index(recipe.qk_norm),
        t.ACTIVATION: _ACTIVATIONS.index(config.activation),
        t.N_LAYERS: config.n_layers,
        t.VOCABULARY: family.config.vocab_size,
    }
    for place, value in values.items():
        numbers[place] = value
    factors[t.EPS], factors[t.SCORE_CAP] = config.norm_eps, config.score_cap
    factors[t.QUERY_SCALE] = block.query_scale if isinstance(block.w_qkv, SideBySide) else 1
    return numbers, factors
