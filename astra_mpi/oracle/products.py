"""Products in a narrow type one by one: an error in one layer cannot hide among the roundings of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from astra_mpi.device.weights import product as multiply_by
from astra_mpi.engine import Model
from astra_mpi.models.block import Block
from astra_mpi.models.decoder import Decoder
from astra_mpi.oracle.narrow import Rounding
from astra_mpi.oracle.tolerance import FLOAT32

#: rows of a product: some kernels take a few alone
_ROWS = (1, 5, 40)
#: inputs that share a factor in weights that are stored in blocks
_BLOCK = 32

Multiply = Callable[[np.ndarray], np.ndarray]
Held = Callable[[Any], np.ndarray]


def excess(model: Model, compute: str, held: Held) -> tuple[float, str]:
    """The largest difference of a product on this rank over what is accepted, and which; 1 or less is right.

    Rows are integers, which every type holds as they are, so that only the weights are rounded: by the engine in
    float32, here in float64. held: a weight as float numbers.
    """
    worst, name, rounding = 0.0, "", Rounding(compute)
    for what, weights, multiply in _products(model, held):
        width = len(weights[0])
        for n_rows in _ROWS:
            x = _rows(n_rows, width)
            each = [rounding.product(x.astype(np.float64), weight.astype(np.float64)) for weight in weights]
            expected = np.concatenate(each, axis=1)
            off = np.abs(multiply(x) - expected).max() / max(float(np.abs(expected).max()), 1e-30)
            ratio = float(off / _accepted(compute, width))
            if not ratio <= worst:  # NaN too
                worst, name = ratio, f"{what} of {n_rows} row{'s' * (n_rows > 1)}"
    return worst, name


def _accepted(compute: str, n_inputs: int) -> float:
    """In int8, one weight near the middle between two steps may be rounded to the other one."""
    return FLOAT32.difference + (0.05 / n_inputs**0.5 if compute.startswith("int8") else 0.0)


def _rows(n: int, width: int) -> np.ndarray:
    x = np.random.default_rng(width).integers(-126, 127, (n, width)).astype(np.float32)
    x[:, ::_BLOCK] = 127.0  # a row's scale, and that of each of its blocks, is then 1
    return x


def _products(model: Model, held: Held) -> Iterator[tuple[str, list[np.ndarray], Multiply]]:
    """Names, weights (k, n) side by side, and their products by the engine: first and last block, and head."""
    for i in dict.fromkeys((0, len(model.blocks) - 1)):
        block = model.blocks[i]
        for linear in ("o", "fc1", "fc2", *(("gate",) if block.recipe.gated else ())):
            yield f"{linear} in block {i}", [held(block.w[f"{linear}.weight"])], _by_block(block, linear)
        kv = [held(block.w[f"{name}.weight"]) for name in "kv"]
        yield f"keys and values in block {i}", kv, _keys_values(block)
    family = model.family
    if isinstance(family, Decoder) and family.config.tied:
        head = family.word_head
        if head is not None:
            empty = np.empty
            words = [held(family.w["embed.word"]).T]
            yield "head", words, lambda x: head.layer(x, empty((len(x), head.shape[1]), "f4"))
    elif "head.weight" in family.w:
        yield "head", [held(family.w["head.weight"])], lambda x: family.product(x, "head.weight")


def _by_block(block: Block, linear: str) -> Multiply:
    return lambda x: block.product(x, linear, "checked").copy()


def _keys_values(block: Block) -> Multiply:
    """Without the biases that the engine adds."""

    def multiply(x: np.ndarray) -> np.ndarray:
        weight, out = block.w_kv, np.empty((len(x), block.w_kv.shape[1]), np.float32)
        made: np.ndarray = multiply_by(x, weight, out, block.kernels, block.scratch)
        return made

    return multiply
