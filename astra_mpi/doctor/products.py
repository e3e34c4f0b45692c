"""What this CPU has for products in bfloat16 and int8, the path that each type takes, and how fast it is."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from astra_mpi.costs.latency import Speeds
from astra_mpi.device.backend import COMPUTES
from astra_mpi.doctor.probes import INNER, ROWS, STREAMED, WIDTH, attention_speed
from astra_mpi.kernels import cpu
from astra_mpi.kernels.cpu._features import features, path, tiles_refused
from astra_mpi.kernels.cpu.products.speeds import gflops

#: outputs of a layer whose weights do not stay in a second-level cache, as in a pass through many blocks
_OUTPUTS = 4 * INNER
#: weights that one row meets: 128 MiB of them. Of 32 MiB, a cache of that size keeps enough to be a third faster
_MET = {"bfloat16": 4 * STREAMED, "int8": 8 * STREAMED}
#: what a CPU may have, in LLVM's words, and as people say it
_NAMES = {"amx-bf16": "AMX bfloat16", "amx-int8": "AMX int8", "avx512bf16": "AVX512-BF16", "avx512vnni": "AVX512-VNNI"}


def instructions() -> dict[str, Any]:
    """ "has": names; "refused": why the system does not let this process use AMX, "" where it does or there is none."""
    found = features()
    refused = tiles_refused() if "amx-tile" in found else ""
    return {"has": [name for feature, name in _NAMES.items() if feature in found], "refused": refused}


def speeds_by_type(plain: Speeds, now: Callable[[], float] = time.perf_counter) -> dict[str, dict[str, Any]]:
    """Type -> {"path", "why", "gflops", "speeds"}: of many rows, and the speeds that `plan --compute` takes.

    plain: those of float32, which the other kinds of work keep.
    """
    told = {}
    for compute in COMPUTES:
        way, speeds = path(compute), plain
        many = gflops(compute, ROWS, WIDTH, _OUTPUTS, now=now)
        if compute != "float32":
            one = gflops(compute, 1, WIDTH, _MET[compute] // WIDTH, laps=3, now=now)
            kernels = import_module(f"{cpu.__name__}.{compute}")
            attention = attention_speed(kernels, now=now)
            speeds = dataclasses.replace(plain, gemm=many * 5e8, attention=attention, weights=one * 5e8)
        told[compute] = {"path": way.name, "why": way.why, "gflops": many, "speeds": dataclasses.asdict(speeds)}
    return told
