"""astra-mpi merge: the results of shards as one file."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "merge",
        help="join the results of shards",
        description="Joins results files in input order. Refuses files of different jobs, missing items and items that"
        " are there twice. The summary goes beside OUT.h5 and to stdout.",
    )
    parser.add_argument("output", metavar="OUT.h5", help="file to write; it must not exist")
    parser.add_argument("parts", metavar="PART.h5", nargs="+", help="results of `run` with input.shard, in any order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.job.merge import merge

    print(json.dumps(merge(args.parts, args.output)))
    return 0
