"""Options of the commands that run a model on these ranks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.engine import Model


def add_model_options(parser: argparse.ArgumentParser, batch: int = 4, several_networks: bool = False) -> None:
    parser.add_argument("model", help="model file")
    parser.add_argument(
        "--strategies", type=_names, metavar="A,B", help="such as single,sp:int8; default: every one that applies"
    )
    parser.add_argument("--tokens", type=int, metavar="T", help="content tokens of the longest sequence")
    parser.add_argument("--batch", type=int, default=batch, metavar="B", help="sequences (default %(default)s)")
    add_loading_options(parser, "of inputs and of what is lost", several_networks)


def add_loading_options(parser: argparse.ArgumentParser, seed: str, several_networks: bool = False) -> None:
    """What `load_model` reads beside the model and its strategy, and --json. seed: what it is for."""
    parser.add_argument("--codebooks", metavar="FILE", help="codebook file, instead of the codebooks in the model")
    parser.add_argument("--backend", default="numpy", help="numpy (default), reference or cuda")
    parser.add_argument("--transport", default="host", help="with cuda: host (default) or cuda-aware")
    parser.add_argument("--precision", default="float32", help="with cuda: float32 (default), tf32 or float16")
    add_compute_option(parser)
    parser.add_argument("--threads", type=int, metavar="N", help="per rank (default SLURM_CPUS_PER_TASK, else 1)")
    parser.add_argument(
        "--grid",
        metavar="RxSxT",
        help="ranks as replicas x stages x tokens, such as 2x1x4 (default: all share tokens; docs/explanation/grid.md)",
    )
    parser.add_argument(
        "--stages", type=_stages, metavar="N,..", help="blocks of each stage of a grid; even; auto: by speed and memory"
    )
    parser.add_argument(
        "--handed-on",
        default="float16",
        metavar="TYPE",
        help="of activations between stages: float32, float16 (default), int8",
    )
    parser.add_argument(
        "--weights",
        type=_weights,
        metavar="W,..",
        help="relative speeds of the ranks, for the cut; auto measures them, causal takes them as equal (decoders)",
    )
    parser.add_argument(
        "--watchdog",
        metavar="TIME",
        help="how long ranks wait for a silent one before all end (default 300s); 0: for ever",
    )
    parser.add_argument("--seed", type=int, default=0, help=f"{seed} (default %(default)s)")
    parser.add_argument("--counted-keys", choices=("on", "off"), default="on", help="default %(default)s")
    parser.add_argument(
        "--halves",
        choices=("auto", "on", "off"),
        default="auto",
        help="a batch as two halves in turns; auto (default): where that is predicted to be faster",
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON; - for stdout")
    add_condition_options(parser, several_networks)


def add_compute_option(parser: argparse.ArgumentParser, auto: str = ", or auto") -> None:
    parser.add_argument(
        "--compute",
        default="float32",
        metavar="TYPE",
        help=f"of products: float32 (default), bfloat16, int8{auto} (docs/explanation/compute.md)",
    )


def add_condition_options(parser: argparse.ArgumentParser, several_networks: bool = False) -> None:
    """--network, --accounting, --clock, --speed, --deadline, --missing; docs/explanation/network.md explains them."""
    group = parser.add_argument_group("network and clock")
    group.add_argument(
        "--network",
        action="append",
        metavar="SPEC",
        help="real (default), or to be emulated: 10Mbps, trace:FILE, with ,rtt=2ms ,loss=1%% ,shared"
        + ("; again for further ones" if several_networks else ""),
    )
    group.add_argument("--accounting", default="port", help="bytes that it charges: port (default), contributed, paper")
    group.add_argument("--clock", default="wall", help="wall (default), or virtual: CPU time plus the emulated network")
    group.add_argument("--speed", type=_numbers, default=[1.0], metavar="F,..", help="virtual CPU seconds per real one")
    group.add_argument("--deadline", metavar="TIME", help="such as 5ms: how long astra waits at an exchange")
    group.add_argument(
        "--missing",
        default="auto",
        help="codes that do not come: drop, mean, or predict with predicted codes; auto (default): predict, else drop",
    )


def condition_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """These options as keywords of `astra_mpi.load`; of several networks the first that is not the real one."""
    networks = args.network or ["real"]
    names = ("accounting", "clock", "speed", "deadline", "missing")
    given = {name: getattr(args, name) for name in names}
    return {"network": next((n for n in networks if n != "real"), "real"), **given}


def _names(text: str) -> list[str]:
    return text.split(",")


def _weights(text: str) -> str | list[float]:
    return text if text in ("auto", "even", "causal") else _numbers(text)


def _stages(text: str) -> str | list[int]:
    try:
        return text if text in ("auto", "even") else [int(part) for part in text.split(",")]
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers of blocks such as 4,4,2,2") from exc


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of numbers such as 2,1,1") from exc


def load_model(
    args: argparse.Namespace, comm: MPI.Comm, strategy: str | None, new_tokens: int = 0, one_replica: bool = False
) -> Model:
    """Collective: the model as the options say; strategy and new_tokens: as `load` takes them. one_replica: what is
    asked of it is one sequence."""
    from astra_mpi.config import require
    from astra_mpi.device.threads import set_threads
    from astra_mpi.errors import collective
    from astra_mpi.files.hdf5 import check_target
    from astra_mpi.loading import load
    from astra_mpi.ranks.grid import parse_grid
    from astra_mpi.strategies import parse

    with collective(comm):
        several = args.grid != "auto" and parse_grid(args.grid, comm.Get_size()).replicas > 1
        one = not (one_replica and several)
        require(
            one, f"--grid {args.grid}: one text is one replica's; give a grid with one, such as 1x1x{comm.Get_size()}"
        )
        if args.json not in (None, "-"):
            check_target(args.json)
        for text in args.strategies or []:
            parse(text)
        set_threads(args.threads)
    return load(
        args.model,
        comm=comm,
        strategy=strategy,
        grid=args.grid,
        stages=args.stages,
        handed_on=args.handed_on,
        new_tokens=new_tokens,
        backend=args.backend,
        transport=args.transport,
        precision=args.precision,
        compute=args.compute,
        codebooks=args.codebooks,
        weights=args.weights,
        counted_keys=args.counted_keys == "on",
        halves=args.halves if args.halves == "auto" else args.halves == "on",
        seed=args.seed,
        watchdog=args.watchdog,
        **condition_arguments(args),
    )


def write_json(path: str, values: Any) -> None:
    """To `path`, or to stdout when it is "-"."""
    write_text(path, json.dumps(values, indent=2))


def write_text(path: str, text: str) -> None:
    """To `path`, whole or not at all, or to stdout when it is "-". AstraError if it cannot be written; InputError if it
    is an HDF5 file, or where no file can be."""
    from astra_mpi.errors import InputError
    from astra_mpi.files import whole

    if path == "-":
        sys.stdout.write(text + "\n")
        return
    with suppress(OSError):
        if os.path.isfile(path):
            with open(path, "rb") as old:
                if old.read(4) == b"\x89HDF":
                    raise InputError(f"{path} is a model or result file and is not overwritten; give another name")
    whole.write_text(path, text + "\n")
