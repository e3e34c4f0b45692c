"""The command line. MPI and NumPy are imported only once a command runs, so that `--help` is quick and safe anywhere.

A command is a module of `astra_mpi.commands` with `add_parser(subparsers)`, which sets the default `run`: fn(args) ->
exit code, or with `spmd=True` fn(args, comm) on every rank. `uses_mpi=True`: one process, which computes as one rank.
A module whose name starts with an underscore is a part of a command, which imports it once it runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import pkgutil
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

from astra_mpi import commands
from astra_mpi.errors import AstraError, ReaderGone
from astra_mpi.job import log
from astra_mpi.ranks import terminal
from astra_mpi.version import __version__

if TYPE_CHECKING:
    from mpi4py import MPI

#: how long a failing rank waits for the others to fail in the same way, before it ends them
MEETING_S = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, which is not 0 if part of its output was lost."""
    terminal.prepare()
    try:
        args = _parse(argv)
        code = _together(args) if args.spmd else _alone(args)
    except SystemExit:  # of --help, --version and wrong use
        code = _end(0)
        if code:
            return code
        raise
    return _end(code)


def _end(code: int) -> int:
    try:
        terminal.end()
    except AstraError as exc:
        if not code:
            _say(exc, debug=False)
        return code or exc.exit_code
    return code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; section.key=value may also follow an option, where argparse does not look for it any more."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


#: what ranks that say nothing wait for the one that says what is wrong: a launcher may end all once one has ended
PATIENCE_S = 2.0


class _Parser(argparse.ArgumentParser):
    """Of several ranks, rank 0 alone says what is wrong with the command line."""

    def error(self, message: str) -> NoReturn:
        from astra_mpi.ranks.launch import launched_rank

        if launched_rank() != 0:
            time.sleep(PATIENCE_S)
            sys.exit(2)
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="astra-mpi", description="Fast Transformer inference on several machines joined by a slow network."
    )
    parser.add_argument("--version", action="version", version=f"astra-mpi {__version__}")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    parser.set_defaults(spmd=False, uses_mpi=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    names = (module.name for module in pkgutil.iter_modules(commands.__path__))
    for name in (name for name in names if not name.startswith("_")):
        add_parser = getattr(import_module(f"astra_mpi.commands.{name}"), "add_parser", None)
        if add_parser is not None:
            add_parser(subparsers)
    for command in subparsers.choices.values():
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        if command.get_default("spmd"):
            _add_log_options(command)
    return parser


def _add_log_options(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("log")
    group.add_argument("--log-level", choices=log.LEVELS, help="one line per event to stderr (default none)")
    group.add_argument("--log-dir", metavar="DIR", help="to a file per rank in DIR instead (default level info)")


def _alone(args: argparse.Namespace) -> int:
    from astra_mpi.ranks.launch import check_alone, launched_rank

    try:
        check_alone(args.command)
        if getattr(args, "uses_mpi", False) and (code := _start_mpi(args.debug)):
            return code
        return int(args.run(args))
    except (Exception, KeyboardInterrupt) as exc:
        if launched_rank() == 0:
            _say(exc, args.debug)
        elif isinstance(exc, Exception):
            time.sleep(PATIENCE_S)
        return _exit_code(exc)


def _together(args: argparse.Namespace) -> int:
    from astra_mpi.ranks.witness import WITNESS

    WITNESS.start(getattr(args, "command", "command"))
    try:
        return _start_mpi(args.debug) or _on_all_ranks(args)
    finally:
        WITNESS.leave()


def _start_mpi(debug: bool) -> int:
    """0, or the exit code if MPI cannot be started here, told once on each machine."""
    from astra_mpi.ranks.launch import local_rank
    from astra_mpi.ranks.shared_memory import start_mpi

    try:
        start_mpi()
    except Exception as exc:
        if local_rank() == 0:
            _say(exc, debug)
        return _exit_code(exc)
    return 0


def _on_all_ranks(args: argparse.Namespace) -> int:
    from astra_mpi.ranks.launch import check_together, launched_rank
    from astra_mpi.ranks.witness import WITNESS

    try:
        from mpi4py import MPI

        from astra_mpi.ranks.watched import watched

        check_together(MPI.COMM_WORLD.Get_size())
        comm = watched(MPI.COMM_WORLD)
    except Exception as exc:
        if launched_rank() == 0:
            _say(exc, args.debug)
        else:
            time.sleep(PATIENCE_S)
        return _exit_code(exc)
    meeting = comm.Dup()
    WITNESS.join(comm)
    try:
        _begin_log(args, comm)
        code = int(args.run(args, comm))
        log.event("command ended", exit_code=code)
        return code
    except (Exception, KeyboardInterrupt) as exc:
        return _fail(exc, args.debug, meeting)


def _begin_log(args: argparse.Namespace, comm: MPI.Comm) -> None:
    log.configure(comm.Get_rank(), getattr(args, "log_level", None), getattr(args, "log_dir", None))
    name = getattr(args, "command", "command")
    log.event(f"{name} started", ranks=comm.Get_size(), host=socket.gethostname(), pid=os.getpid())


def _fail(exc: BaseException, debug: bool, meeting: MPI.Comm) -> int:
    """The exit code if every rank fails, told once by rank 0; otherwise this rank tells and ends all."""
    from astra_mpi.ranks.witness import WITNESS

    rank = meeting.Get_rank()
    together = _meet(meeting)
    level = logging.INFO if together and rank else logging.ERROR  # once, if all say the same
    log.event(f"command failed: {_text(exc, debug)}", level=level, exit_code=_exit_code(exc))
    if together:
        if rank == 0 or debug:
            _say(exc, debug)
        return _exit_code(exc)
    _say(exc, debug, where=f"rank {rank}: ")
    WITNESS.told()
    meeting.Abort(_exit_code(exc))
    raise AssertionError("Abort returned")


def _meet(meeting: MPI.Comm) -> bool:
    """True if all ranks come here within MEETING_S."""
    arrived = meeting.Ibarrier()
    end_s = time.monotonic() + MEETING_S
    while not arrived.Test():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.01)
    return True


def _say(exc: BaseException, debug: bool, where: str = "") -> None:
    if isinstance(exc, ReaderGone):
        return
    if debug:
        traceback.print_exception(exc)
    print(f"astra-mpi: error: {where}{_text(exc, debug)}", file=sys.stderr, flush=True)


def _text(exc: BaseException, debug: bool) -> str:
    if isinstance(exc, KeyboardInterrupt):
        return "interrupted"
    if isinstance(exc, AstraError):
        return str(exc)
    return f"{type(exc).__name__}: {exc}" + ("" if debug else "; --debug shows where")


def _exit_code(exc: BaseException) -> int:
    return 130 if isinstance(exc, KeyboardInterrupt) else getattr(exc, "exit_code", 3)
