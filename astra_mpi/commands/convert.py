"""astra-mpi convert: a Hugging Face folder or a llama2.c checkpoint -> a model file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="a Hugging Face folder or a llama2.c checkpoint -> a model file",
        description="Makes a model file of a Hugging Face folder: config.json and safetensors (sharded too), and what"
        " is there of tokenizer.json, sentence-transformers settings and preprocessor_config.json. Or of a llama2.c"
        " checkpoint.",
    )
    parser.add_argument("source", metavar="SRC", help="Hugging Face folder, or model.bin of llama2.c")
    parser.add_argument("output", metavar="OUT.h5", help="model file to write")
    parser.add_argument(
        "--dtype", choices=("float32", "float16"), default="float32", help="storage of weights (default %(default)s)"
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.bin that belongs to a llama2.c model.bin")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.config import require
    from astra_mpi.convert import convert
    from astra_mpi.llama2c import convert_llama2c
    from astra_mpi.modelfile import write_model

    command = f"convert {Path(args.source).resolve().name} {Path(args.output).name} --dtype {args.dtype}"
    if Path(args.source).suffix == ".bin":
        model, notes = convert_llama2c(args.source, args.tokenizer, args.dtype, command)
    else:
        require(args.tokenizer is None, "--tokenizer is for a llama2.c model.bin; a folder has its own tokenizer.json")
        model, notes = convert(args.source, args.dtype, command)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    digest = write_model(args.output, model)
    n_parameters = sum(array.size for array in model.weights.values())
    print(f"{args.output}: {model.config.family}, {n_parameters:,} parameters, {args.dtype}, digest {digest[:12]}")
    return 0
