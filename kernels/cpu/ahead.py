"""The kernels in parts, which processes can compile at the same time before a job.

python -m astra_mpi.kernels.cpu.ahead PART.. compiles parts into the folder of NUMBA_CACHE_DIR, else where kernels are
kept, reads no other folder, and prints what became of each as a line of JSON.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

from astra_mpi.kernels import _compile, cpu
from astra_mpi.kernels.blocks import BLOCK, BLOCK_KINDS, RECORDS, Layer
from astra_mpi.kernels.cpu import token
from astra_mpi.kernels.cpu.flash import calls as flash
from astra_mpi.kernels.cpu.products.calls import warm_up_products


def blocks() -> None:
    """Products with weights in blocks, of few rows and many, in integers and floats."""
    for kind in BLOCK_KINDS:
        weights = np.zeros((2, 1, RECORDS[kind].itemsize), np.uint8)
        out = np.empty((1, 2 * 16), np.float32)
        x = np.zeros((1, BLOCK), np.float32)
        cpu.multiply_blocks(kind, cpu.quantise_rows(x), weights, out)
        many, layer = np.zeros((64, BLOCK), np.float32), Layer(kind, weights, 2 * 16, None)
        cpu.multiply_blocks(kind, cpu.quantise_rows(many), weights, np.empty((64, 2 * 16), np.float32))
        cpu.activated_blocks(many, layer, layer, "silu")
        cpu.times_blocks(kind, x, weights, out)
        cpu.widen_blocks(kind, weights, 0, np.empty((BLOCK, out.shape[1]), np.float32))


def _narrow() -> None:
    """What bfloat16 and int8 share."""
    flash.warm_up()
    cpu.table_sum(np.zeros((1, 1), np.uint8), np.zeros((1, 1, 1), np.uint16), None, None)


#: part -> what compiles it; those that take longest first
PARTS: dict[str, Callable[[], None]] = {
    "token": token.warm_up,
    "narrow": _narrow,
    "float32": cpu.warm_up,
    "int8": lambda: warm_up_products("int8"),
    "bfloat16": lambda: warm_up_products("bfloat16"),
    "blocks": blocks,
}


def parts(computes: tuple[str, ...], decodes: bool, in_blocks: bool) -> list[str]:
    """Those that products of these types need, in the order of PARTS. decodes: also new tokens, one at a time;
    in_blocks: also weights in blocks of 4 or 8 bits."""
    needed = {"float32", *computes}
    needed |= ({"narrow"} if needed - {"float32"} else set()) | ({"token"} if decodes else set())
    return [part for part in PARTS if part in needed or (part == "blocks" and in_blocks)]


def main() -> None:
    _compile.FILLS = True
    for part in sys.argv[1:]:
        n_before, begin_s = _compile.STATE.n_compiled, time.monotonic()
        PARTS[part]()
        told = {"part": part, "n_compiled": _compile.STATE.n_compiled - n_before, "took_s": time.monotonic() - begin_s}
        places = {"folders": sorted(_compile.STATE.folders), "trouble": _compile.STATE.trouble}
        print(json.dumps(told | places), flush=True)


if __name__ == "__main__":
    main()
