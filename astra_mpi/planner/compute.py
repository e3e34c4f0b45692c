"""`compute = "auto"`: the fastest type of products that changes answers by little (docs/explanation/compute.md).

Never imported by the forward pass: `load` comes here once, before it.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from astra_mpi.device.backend import COMPUTES, Backend, get_backend
from astra_mpi.device.scratch import Scratch
from astra_mpi.engine import Model
from astra_mpi.errors import collective
from astra_mpi.models import FAMILIES
from astra_mpi.models.block import Block
from astra_mpi.models.decoder import Decoder
from astra_mpi.planner.probes import block_multiply_adds, one_pass
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.watched import alone

if TYPE_CHECKING:
    from astra_mpi.files.modelfile import ModelFile

#: largest accepted change of the answers, relative to float32's (root of the summed squares)
BOUND = 0.02
#: a type that is faster by less is not worth another answer
WORTH = 1.05
#: sequences of random inputs and tokens of each, on which the change is measured
_ITEMS, _TOKENS = 2, 64
#: rows that pass through the first block, and how long each type is watched, in so many turns
_ROWS, _LEAST_S, _TURNS = 128, 0.02, 3


def choose_compute(file: ModelFile, comm: MPI.Comm) -> tuple[Backend, dict[str, Any]]:
    """Collective: the Numba kernels of the type that is chosen, the same on all ranks, and how it was chosen.

    Speed: rows through the model's first block, on every rank at once; the slowest rank counts. Effect: the answers to
    a few random inputs against float32's, on rank 0, of types that are faster. A type must be faster by WORTH and below
    BOUND.
    """
    start_s = time.perf_counter()
    backends = {compute: get_backend("numpy", comm, compute=compute) for compute in COMPUTES}
    speeds = _slowest_speeds(file, comm, backends)
    text = ""
    with collective(comm), alone(comm, "trying types of products"):
        if comm.Get_rank() == 0:
            decision = _decision(file, backends, speeds)
            text = json.dumps(decision | {"probe_s": round(time.perf_counter() - start_s, 3)})
    told: dict[str, Any] = json.loads(broadcast_text(comm, text))
    return backends[told["type"]], told


def _slowest_speeds(file: ModelFile, comm: MPI.Comm, backends: dict[str, Backend]) -> dict[str, float]:
    """Collective: floating-point operations per second of each type, of the rank on which it is slowest."""
    mine, slowest = np.empty(len(backends)), np.empty(len(backends))
    with collective(comm):
        blocks = [_first_block(file, backend) for backend in backends.values()]
        x = np.random.default_rng(0).standard_normal((_ROWS, file.config.d_model), dtype=np.float32)
        for block in blocks:
            one_pass(block, x)
    comm.Barrier()  # all at once, as in use
    with collective(comm):
        least_s = np.full(len(blocks), np.inf)
        for _ in range(_TURNS):
            for i, block in enumerate(blocks):
                least_s[i] = min(least_s[i], _pass_s(block, x))
        mine[:] = 2 * _ROWS * block_multiply_adds(file.config) / least_s
    comm.Allreduce(mine, slowest, op=MPI.MIN)
    return dict(zip(backends, map(float, slowest), strict=True))


def _first_block(file: ModelFile, backend: Backend) -> Block:
    own = {name.split(".", 2)[2]: weight for name, weight in file.weights.items() if name.startswith("blocks.0.")}
    recipe = FAMILIES[file.config.family].recipe_of(file.config)
    return Block(file.config, recipe, own, backend.kernels, Scratch(np, np.float32))


def _pass_s(block: Block, x: np.ndarray) -> float:
    """Of the quickest pass in a while."""
    least_s, begin_s = np.inf, time.perf_counter()
    while time.perf_counter() - begin_s < _LEAST_S:
        start_s = time.perf_counter()
        one_pass(block, x)
        least_s = min(least_s, time.perf_counter() - start_s)
    return float(least_s)


def _decision(file: ModelFile, backends: dict[str, Backend], speeds: dict[str, float]) -> dict[str, Any]:
    """The fastest type within the bound, the figures of what was tried, and the choice in words."""
    faster = sorted((c for c in COMPUTES if speeds[c] >= WORTH * speeds["float32"]), key=lambda c: -speeds[c])
    effects: dict[str, float | None] = {}
    if faster:
        exact = _answers(file, backends["float32"])
        scale = float(np.linalg.norm(exact)) or 1.0
        for compute in faster:
            effect = float(np.linalg.norm(_answers(file, backends[compute]) - exact)) / scale
            effects[compute] = effect if np.isfinite(effect) else None
            if effect <= BOUND:
                break
    chosen = next((c for c, effect in effects.items() if effect is not None and effect <= BOUND), "float32")
    gflops = {compute: round(1e-9 * speed, 3) for compute, speed in speeds.items()}
    told = {"type": chosen, "by": "auto", "bound": BOUND, "effects": effects, "gflops": gflops}
    told |= {"products": backends[chosen].choices.get("products")}
    return told | {"why": _in_words(told)}


def _answers(file: ModelFile, backend: Backend) -> np.ndarray:
    """Float64 answers to random inputs on this rank alone; of decoders the logits of every token. Logits are taken
    without their mean, which changes nothing that is made of them."""
    model = Model(dataclasses.replace(file, codec=None), MPI.COMM_SELF, backend)
    model.use("single")
    config, rng = file.config, np.random.default_rng(0)
    if config.family == "vit":
        return _centred(model(rng.standard_normal((_ITEMS, config.channels, *config.image_size), np.float32)), config)
    ids = rng.integers(0, config.vocab_size, (_ITEMS, min(_TOKENS, config.max_positions)))
    answer, hidden = model(ids, gather=True)
    return _centred(hidden if isinstance(model.family, Decoder) else answer, config)


def _centred(answers: np.ndarray, config: Any) -> np.ndarray:
    answers = answers.astype(np.float64)
    logits = issubclass(FAMILIES[config.family], Decoder) or getattr(config, "n_classes", 0) > 1
    return answers - answers.mean(axis=-1, keepdims=True) if logits else answers


def _in_words(told: dict[str, Any]) -> str:
    gflops, chosen = told["gflops"], told["type"]
    fast = ", ".join(f"{compute} {speed:.3g}" for compute, speed in gflops.items())
    changed = [_changed(compute, effect, told["bound"]) for compute, effect in told["effects"].items()]
    tried = "; ".join(changed) or f"none is {WORTH:g} times as fast as float32"
    return f"chose compute {chosen}: {tried}; GFLOP/s in a block, on the slowest rank: {fast}"


def _changed(compute: str, effect: float | None, bound: float) -> str:
    if effect is None:
        return f"{compute} gives answers that are not finite"
    verdict = "within" if effect <= bound else "above"
    return f"{compute} changes the answers by {effect:.2%}, {verdict} the bound of {bound:.0%}"
