"""astra-mpi info: what a file holds."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from astra_mpi.commands.model_options import write_json

LONGEST = 100  # characters of a value in the table; --json has it all


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "info",
        help="what a file holds",
        description="Shape, parameters, codebooks, bits per token and provenance of a model or codebook file;"
        " datasets and settings of a results file; whether it holds what was written, for which all of it is read (exit"
        " code 2 if not). Of RESULTS.h5.parts, which a job fills while it runs: progress, throughput, wait share,"
        " slowest rank.",
    )
    parser.add_argument("file", metavar="FILE.h5", help="model, codebook or results file, or a job's RESULTS.h5.parts")
    parser.add_argument("--quick", action="store_true", help="do not read all of it: not compared with its checksum")
    parser.add_argument("--json", metavar="PATH", help="write everything as JSON; - for stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    facts, damage = _describe(args.file, args.quick)
    if args.json != "-":
        for name, value in _rows(facts):
            print(f"{name:<34}{value}")
    if args.json:
        write_json(args.json, facts)
    if damage is not None:
        raise damage
    return 0


def _describe(path: str, quick: bool) -> tuple[dict[str, Any], Exception | None]:
    """A file, or a job's parts, also named by the results that are to come; and what is wrong with the file."""
    from astra_mpi.errors import InputError
    from astra_mpi.job.info import check_contents, describe
    from astra_mpi.job.recorded import parts_folder
    from astra_mpi.job.state import describe_job, is_parts_folder

    parts = Path(path) if is_parts_folder(path) else parts_folder(Path(path))
    if parts == Path(path) or (parts.is_dir() and not Path(path).exists()):
        return describe_job(parts), None
    facts = describe(path)
    if quick:
        return facts, None
    try:
        return facts | {"contents": check_contents(path)}, None
    except InputError as exc:
        return facts | {"contents": "damaged"}, exc


def _rows(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        if isinstance(value, dict) and value:
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value) if name == "pid" else _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
