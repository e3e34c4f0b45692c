"""astra-mpi report: one self-contained HTML page about measured runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="one HTML page with verdict, tables and plots",
        description="Reads what `bench --json` and `sweep` wrote, and writes one HTML file that needs no network:"
        " verdict, plots, tables, and what failed. Plots need matplotlib (extra `plot`).",
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS.json", type=Path, help="of bench or sweep")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="default %(default)s")
    parser.add_argument("--figures", type=Path, metavar="FOLDER", help="also write the plots there, as PNG")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    write_report(args.runs, args.output, args.figures)
    return 0


def write_report(runs: Sequence[Path], output: Path, figures: Path | None = None) -> None:
    """Without matplotlib the page has a sentence in place of the plots, and stderr has it too."""
    from astra_mpi.errors import InputError
    from astra_mpi.files import whole
    from astra_mpi.files.figure import missing_matplotlib
    from astra_mpi.measure.page import page
    from astra_mpi.measure.plots import draw_all, save_pictures
    from astra_mpi.measure.runs import read_runs

    if output.resolve() in [path.resolve() for path in runs]:
        raise InputError(f"{output} is one of the files to read; give the page another name")
    measured = read_runs(runs)
    lacking = missing_matplotlib()
    pictures = [] if lacking else draw_all(measured)
    whole.write_text(output, page(measured, pictures, lacking))
    if figures is not None and not lacking:
        save_pictures(pictures, figures)
    if lacking:
        print(f"astra-mpi: no plots: {lacking}", file=sys.stderr)
    print(f"{output}: {len(pictures)} plots, {len(measured.runs)} runs")
