"""What the facts of all ranks mean, and the setting that cures what is wrong. Pure functions, no MPI."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

#: ranks slower than this share of the fastest make an even cut wait for them
UNEVEN = 0.8
#: links slower than this share of the median set the pace of every exchange
SLOW_LINK = 0.5

Facts = list[dict[str, Any]]


class Finding(NamedTuple):
    """One checked thing."""

    check: str
    fine: bool
    found: str
    cure: str = ""

    def as_dict(self) -> dict[str, str]:
        return {"check": self.check, "state": "ok" if self.fine else "warn", "found": self.found, "cure": self.cure}


def findings(facts: Facts, bandwidth_bps: np.ndarray, rtt_s: np.ndarray) -> list[Finding]:
    """All checks; facts of every rank in order (`placement.py`), links (P, P) with NaN on the diagonal."""
    return [
        *_versions(facts),
        _tasks(facts),
        *(_cores(host, ranks) for host, ranks in by_host(facts).items()),
        *_places(facts, "shared_memory", "shared memory"),
        *_places(facts, "kernel_cache", "compiled kernels"),
        _speeds(facts),
        _products(facts),
        _links(bandwidth_bps, rtt_s),
        _gpu(facts),
        *_files(facts),
    ]


def by_host(facts: Facts) -> dict[str, Facts]:
    """Ranks of each host."""
    hosts: dict[str, Facts] = defaultdict(list)
    for rank in facts:
        hosts[rank["host"]].append(rank)
    return hosts


def _versions(facts: Facts) -> list[Finding]:
    answers = []
    for name in facts[0]["versions"]:
        ranks = _grouped([rank["versions"][name] for rank in facts])
        if len(ranks) > 1:
            cure = "give all ranks the same environment: the same virtual environment or container on every node"
            answers.append(Finding(name, False, _differing(ranks), cure))
    first = facts[0]["versions"]
    told = f"{first['mpi']}; mpi4py {first['mpi4py']}; Python {first['python']}"
    return answers or [Finding("versions", True, f"{told}, the same on all ranks")]


def _tasks(facts: Facts) -> Finding:
    size, told = len(facts), dict(facts[0]["tasks"])
    launcher = next((name for name in told if name != "SLURM_NTASKS"), None)
    relevant = {name: n for name, n in told.items() if name in (launcher, "SLURM_NTASKS")}
    text = ", ".join(f"{name} = {n}" for name, n in relevant.items()) or "no launcher says how many were started"
    fine = all(n == size for n in relevant.values())
    cure = (
        "start all tasks with the mpirun of the MPI that mpi4py uses, or srun --mpi=pmi2 (MPICH), --mpi=pmix (Open MPI)"
    )
    return Finding("ranks", fine, f"MPI sees {size}; {text}", "" if fine else cure)


def _cores(host: str, ranks: Facts) -> Finding:
    """Threads that want to run against the cores that they may run on."""
    threads = sum(rank["threads"] for rank in ranks)
    wanted = sum(min(rank["threads"], rank["quota"] or np.inf) for rank in ranks)
    allowed = len(set().union(*(rank["cores"] for rank in ranks)))
    here = ranks[0]["cpus"]
    quotas = [rank["quota"] for rank in ranks if rank["quota"] and rank["quota"] < rank["threads"]]
    found = f"ranks {len(ranks)}, threads {threads}, cores {allowed} of {here}"
    found += f", CPU quota of {min(quotas):g} cores a rank" if quotas else ""
    check = f"cores of {host}"
    if wanted <= allowed:
        return Finding(check, True, found)
    if wanted <= here:
        cure = "give each rank cores of its own: mpirun -bind-to core (MPICH), --bind-to core --map-by slot:PE=THREADS"
        return Finding(check, False, found, cure + " (Open MPI), srun --cpus-per-task=THREADS --cpu-bind=cores")
    most = max(1, here // ranks[0]["threads"])
    cure = f"start at most {most} ranks on this host" + (", or --threads 1" if threads > len(ranks) else "")
    return Finding(check, False, found, cure)


def _places(facts: Facts, fact: str, name: str) -> list[Finding]:
    """What each host's first rank that lacks something found, else the first rank."""
    answers = []
    for host, ranks in by_host(facts).items():
        fine, found, cure = min((rank[fact] for rank in ranks), key=lambda answer: bool(answer[0]))
        answers.append(Finding(f"{name} of {host}", bool(fine), found, cure))
    return answers


def _speeds(facts: Facts) -> Finding:
    speeds = np.array([rank["speeds"]["gemm"] for rank in facts])
    relative = speeds / speeds.max()
    found = f"GEMM {speeds.min() * 2e-9:.1f} to {speeds.max() * 2e-9:.1f} GFLOP/s"
    if relative.min() >= UNEVEN:
        return Finding("speed", True, found)
    return Finding("speed", False, found, "cut by speed: --weights " + ",".join(f"{x:.2f}" for x in relative))


def _products(facts: Facts) -> Finding:
    """What the CPUs have for bfloat16 and int8, and which path each type takes."""
    refused = {rank["rank"]: rank["cpu"]["refused"] for rank in facts if rank["cpu"]["refused"]}
    ranks = _grouped([_paths(rank) for rank in facts])
    if refused:
        rank, why = next(iter(refused.items()))
        cure = "allow arch_prctl in the container's seccomp profile, or start on Linux 5.16 or newer: AMX is idle"
        return Finding("products", False, f"{_differing(ranks)}; rank {rank}: {why}", cure)
    if len(ranks) > 1:
        cure = "the slowest path sets the pace: cut by speed with --weights auto, or name a type that all have"
        return Finding("products", False, _differing(ranks), cure)
    return Finding("products", True, _differing(ranks))


def _paths(rank: dict[str, Any]) -> str:
    has = ", ".join(rank["cpu"]["has"]) or "no instructions for bfloat16 or int8"
    taken = ", ".join(f"{compute} by {told['path']}" for compute, told in rank["compute"].items())
    return f"{has}: {taken}"


def _links(bandwidth_bps: np.ndarray, rtt_s: np.ndarray) -> Finding:
    if len(rtt_s) < 2:
        return Finding("links", True, "one rank, no link")
    worst = np.unravel_index(np.nanargmin(bandwidth_bps), bandwidth_bps.shape)
    slowest, median = bandwidth_bps[worst], np.nanmedian(bandwidth_bps)
    found = f"slowest {slowest / 1e6:.4g} Mbps (rank {worst[0]} to {worst[1]}), longest round trip"
    found += f" {np.nanmax(rtt_s) * 1e3:.3g} ms"
    if slowest >= SLOW_LINK * median:
        return Finding("links", True, found)
    cure = f"every exchange waits for it: look at that link (median {median / 1e6:.4g} Mbps), or leave the rank out"
    return Finding("links", False, found, cure)


def _gpu(facts: Facts) -> Finding:
    for rank in facts:
        fine, found, cure = rank["gpu"]
        if not fine:
            return Finding("gpu", False, f"rank {rank['rank']}: {found}", cure)
    return Finding("gpu", True, facts[0]["gpu"][1])


def _files(facts: Facts) -> list[Finding]:
    answers = []
    for path in facts[0]["files"]:
        ranks = _grouped([rank["files"][path] for rank in facts])
        fine = len(ranks) == 1 and not any("cannot be read" in answer for answer in ranks)
        cure = "" if fine else "put the file on a file system that all nodes see, or copy it to each"
        answers.append(Finding(f"file {path}", fine, _differing(ranks), cure))
    return answers


def _grouped(answers: Sequence[str]) -> dict[str, list[int]]:
    """Answer -> the ranks that gave it."""
    ranks: dict[str, list[int]] = defaultdict(list)
    for rank, answer in enumerate(answers):
        ranks[answer].append(rank)
    return ranks


def _differing(ranks: dict[str, list[int]]) -> str:
    if len(ranks) == 1:
        return f"{next(iter(ranks))}, the same on all ranks"
    return "; ".join(f"{answer} on rank {','.join(map(str, who))}" for answer, who in ranks.items())
