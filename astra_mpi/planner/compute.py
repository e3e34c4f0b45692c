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
from astra_mpi.planner.effect import effect_of
from astra_mpi.planner.probes import block_multiply_adds, one_pass
from astra_mpi.planner.trial import Items, Trial, trial
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.watched import alone

if TYPE_CHECKING:
    from astra_mpi.files.modelfile import ModelFile

#: a type that is faster by less is not worth another answer
WORTH = 1.05
#: rows that pass through the first block, and how long each type is watched, in so many turns
_ROWS, _LEAST_S, _TURNS = 128, 0.02, 3


def choose_compute(file: ModelFile, comm: MPI.Comm, items: Items | None = None) -> tuple[Backend, dict[str, Any]]:
    """Collective: the Numba kernels of the type that is chosen, the same on all ranks, and how it was chosen.

    Speed: rows through the model's first block, on every rank at once; the slowest rank counts. Effect: the answers to
    a few inputs against float32's, on rank 0, of types that are faster: to the job's items, if they are given
    (`trial.py`). A type must be faster by WORTH, and its effect within a bound (`effect.py`).
    """
    start_s = time.perf_counter()
    backends = {compute: get_backend("numpy", comm, compute=compute) for compute in COMPUTES}
    speeds = _slowest_speeds(file, comm, backends)
    text = ""
    with collective(comm), alone(comm, "trying types of products"):
        if comm.Get_rank() == 0:
            decision = _decision(file, backends, speeds, items)
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


def _decision(
    file: ModelFile, backends: dict[str, Backend], speeds: dict[str, float], items: Items | None = None
) -> dict[str, Any]:
    """The fastest type within the bound, the figures of what was tried, and the choice in words."""
    faster = sorted((c for c in COMPUTES if speeds[c] >= WORTH * speeds["float32"]), key=lambda c: -speeds[c])
    effects: dict[str, float | None] = {}
    effect, tried_on = effect_of(file.config), None
    if faster:
        exact = _alone(file, backends["float32"])
        inputs = trial(exact, items)
        tried_on, answers = inputs.what, _answers(exact, inputs)
        for compute in faster:
            found = effect.of(answers, _answers(_alone(file, backends[compute]), inputs))
            effects[compute] = found if np.isfinite(found) else None
            if found <= effect.bound:
                break
    chosen = next((c for c, found in effects.items() if found is not None and found <= effect.bound), "float32")
    gflops = {compute: round(1e-9 * speed, 3) for compute, speed in speeds.items()}
    told = {"type": chosen, "by": "auto", "bound": effect.bound, "effects": effects, "gflops": gflops}
    told |= {"tried_on": tried_on, "products": backends[chosen].choices.get("products")}
    return told | {"why": _in_words(told, effect.words)}


def _alone(file: ModelFile, backend: Backend) -> Model:
    """The model on this rank alone, without codes."""
    model = Model(dataclasses.replace(file, codec=None), MPI.COMM_SELF, backend)
    model.use("single")
    return model


def _answers(model: Model, inputs: Trial) -> np.ndarray:
    """Float64 answers (n, width); of decoders the logits of every token."""
    found = []
    for one, mask in zip(inputs.inputs, inputs.masks, strict=True):
        answer, hidden = model(one, mask, gather=True)
        n_tokens = one.shape[1] if mask is None else int(mask.sum())
        found.append(hidden[0, :n_tokens] if isinstance(model.family, Decoder) else answer)
    return np.concatenate(found).astype(np.float64)


def _in_words(told: dict[str, Any], words: str) -> str:
    gflops, chosen = told["gflops"], told["type"]
    fast = ", ".join(f"{compute} {speed:.3g}" for compute, speed in gflops.items())
    changed = [_changed(compute, effect, told["bound"], words) for compute, effect in told["effects"].items()]
    tried = "; ".join(changed) or f"none is {WORTH:g} times as fast as float32"
    on = f", tried on {told['tried_on']}" if changed else ""
    return f"chose compute {chosen}: {tried}{on}; GFLOP/s in a block, on the slowest rank: {fast}"


def _changed(compute: str, effect: float | None, bound: float, words: str) -> str:
    if effect is None:
        return f"{compute} gives answers that are not finite"
    verdict = "within" if effect <= bound else "above"
    return f"{compute} {words.format(f'{effect:.2%}')}, {verdict} the bound of {bound:.1%}"
