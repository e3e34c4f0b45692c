"""Every command on every family, strategy and codec: what gives a result, what a reason, and what fails.

mpirun -n 2 python jobs/checks/matrix.py [--write docs/reference/support.md] [--commands plan,verify] [--families llama]
    [--codecs "predicted every 2"]
Small random models in a temporary folder. Prints a line per failure and the counts; exit code 1 if a cell failed. The
page is written only if all cells of some columns ran and none failed; other columns stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from matrix_commands import COMMANDS, Bench, Outcome
from matrix_models import CODECS, CONFIGS, MAPS, PLAIN, Variant, variants, write_models
from matrix_page import COLUMNS, kept, page
from mpi4py import MPI

from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.ranks.watched import watched


def outcomes(bench: Bench, wanted: list[Variant], commands: list[str]) -> Iterator[Outcome]:
    """Collective: of every command on every variant."""
    if bench.comm.Get_rank() == 0:
        write_models(bench.folder, wanted)
    bench.comm.Barrier()
    for variant in wanted:
        for command in commands:
            yield from COMMANDS[command](bench, variant)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="the page of all outcomes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every cell")
    parser.add_argument("--commands", default=",".join(COMMANDS), help="default all: %(default)s")
    parser.add_argument("--families", default=",".join(CONFIGS), help="default all: %(default)s")
    parser.add_argument("--codecs", default=",".join([PLAIN, *CODECS, *MAPS]), help="default all: %(default)s")
    args = parser.parse_args()
    commands, families, codecs = args.commands.split(","), args.families.split(","), args.codecs.split(",")
    comm = watched(MPI.COMM_WORLD, 60)
    root = comm.Get_rank() == 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(broadcast_text(comm, folder)), comm)
        wanted = [variant for variant in variants() if variant.family in families and variant.codec in codecs]
        found, start_s = [], time.monotonic()
        for one in outcomes(bench, wanted, commands):
            found.append(one)
            if one.failed and root:
                print(f"FAILED {one.table}: {one.row} on {one.variant.file}: {one.text}", flush=True)
        comm.Barrier()
    failed = sum(one.failed for one in found)
    if root:
        given = sum(one.text == "yes" for one in found)
        reasons = len(found) - given - failed
        spent = f"{time.monotonic() - start_s:.0f} s"
        print(f"{len(found)} cells: {given} results, {reasons} reasons, {failed} failed; {spent}")
        if args.json:
            args.json.write_text(json.dumps([dataclasses.asdict(one) for one in found], indent=0) + "\n")
        columns = {variant.column for variant in wanted}
        whole = set(commands) == set(COMMANDS)
        whole = whole and len(wanted) == len([variant for variant in variants() if variant.column in columns])
        if args.write and whole and not failed:
            others = kept(args.write.read_text(), columns) if len(columns) < len(COLUMNS) else []
            args.write.write_text(page([*others, *found]))
        elif args.write:
            print(f"{args.write} is not written: {'cells failed' if failed else 'not all cells ran'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
