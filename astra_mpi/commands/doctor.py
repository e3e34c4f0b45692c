"""astra-mpi doctor: MPI, threads, speed and links of these ranks, and the cure for what is wrong."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from astra_mpi.commands.model_options import write_json

if TYPE_CHECKING:
    from mpi4py import MPI

MOST_LINKS = 8  # ranks up to which all links are printed; --json has all


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "doctor",
        help="MPI, threads, speed and links of these ranks",
        description="Where the ranks run, how fast each computes, round trip and bandwidth of every pair, and for each"
        " thing that is wrong the setting that cures it. Start with mpirun or srun, as a job would be.",
    )
    parser.add_argument("--files", nargs="+", default=[], metavar="PATH", help="must be the same on every rank")
    parser.add_argument("--threads", type=int, metavar="N", help="per rank (default SLURM_CPUS_PER_TASK, else 1)")
    parser.add_argument("--gpu", action="store_true", help="try whether MPI takes GPU memory")
    parser.add_argument(
        "--links-s", type=float, default=8.0, metavar="S", help="seconds for all links together (default %(default)s)"
    )
    parser.add_argument("--json", metavar="PATH", help="what `astra-mpi plan --profile` reads; - for stdout")
    parser.set_defaults(run=run, spmd=True)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.config import require
    from astra_mpi.device.threads import set_threads
    from astra_mpi.doctor.diagnosis import examine
    from astra_mpi.errors import collective

    with collective(comm):
        require(0 < args.links_s < float("inf"), f"--links-s {args.links_s:g} is not above zero; give seconds")
        set_threads(args.threads)
    report = examine(comm, args.files, args.gpu, args.links_s)
    with collective(comm):
        if report is not None:
            if args.json != "-":
                print("\n".join([*_ranks(report), *_products(report), *_links(report), *_findings(report)]))
            if args.json:
                write_json(args.json, report)
    return 0


def _ranks(report: dict[str, Any]) -> list[str]:
    lines = [
        "speeds of all ranks at once, float32: GFLOP/s; table sums, elements and weights met by one token (stream) 10^9"
        " numbers per second",
        f"{'rank':>4} {'host':<20}{'threads':>8}{'GEMM':>8}{'attention':>11}{'encode':>8}{'tables':>8}{'elements':>10}"
        f"{'stream':>8}  cores",
    ]
    for rank in report["ranks"]:
        speeds = rank["speeds"]
        lines.append(
            f"{rank['rank']:>4} {rank['host'][:19]:<20}{rank['threads']:>8}{speeds['gemm'] * 2e-9:>8.1f}"
            f"{speeds['attention'] * 2e-9:>11.1f}{speeds['encode'] * 2e-9:>8.1f}{speeds['table'] * 1e-9:>8.2f}"
            f"{speeds['elements'] * 1e-9:>10.2f}{speeds['stream'] * 1e-9:>8.2f}  {_spans(rank['cores'])}"
        )
    return lines


def _products(report: dict[str, Any]) -> list[str]:
    """Per rank and type the path, GFLOP/s of many rows, and 10^9 weights per second that one row meets."""
    types = report["ranks"][0]["compute"]
    lines = ["", "products by type (--compute): GFLOP/s, and 10^9 weights per second met by one token"]
    lines.append(f"{'rank':>4} " + "".join(f"{compute:>34}" for compute in types))
    for rank in report["ranks"]:
        cells = []
        for told in rank["compute"].values():
            met = told["speeds"]["weights"] or told["speeds"]["stream"]
            cells.append(f"{told['path']} {told['gflops']:.1f}, {met * 1e-9:.2f}")
        lines.append(f"{rank['rank']:>4} " + "".join(f"{cell:>34}" for cell in cells))
    return lines + [f"{compute}, rank 0: {told['why']}" for compute, told in types.items() if told["why"]]


def _links(report: dict[str, Any]) -> list[str]:
    size = len(report["ranks"])
    if not 2 <= size <= MOST_LINKS:
        return []
    lines = ["", "bandwidth in Mbps from row to column, and round trip in ms"]
    lines.append(" " * 5 + "".join(f"{to:>18}" for to in range(size)))
    for i, (rates, trips) in enumerate(zip(report["links"]["bandwidth_bps"], report["links"]["rtt_s"], strict=True)):
        cells = ["-" if r is None else f"{r / 1e6:.4g} {t * 1e3:.3g}" for r, t in zip(rates, trips, strict=True)]
        lines.append(f"{i:>4} " + "".join(f"{cell:>18}" for cell in cells))
    return lines


def _findings(report: dict[str, Any]) -> list[str]:
    lines = [""]
    for finding in report["findings"]:
        lines.append(f"{finding['state']:<5}{finding['check']}: {finding['found']}")
        if finding["cure"]:
            lines.append(f"     cure: {finding['cure']}")
    return lines


def _spans(cores: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    spans: list[list[int]] = []
    for core in cores:
        if spans and core == spans[-1][1] + 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)
