"""astra-mpi convert: a Hugging Face folder, a GGUF file, a llama2.c checkpoint or a model file -> a model file."""

from __future__ import annotations

import argparse
import sys
from math import prod
from pathlib import Path
from typing import Any

from astra_mpi.device.formats import DTYPES


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "convert",
        help="a Hugging Face folder, a GGUF file or a llama2.c checkpoint -> a model file",
        description="Makes a model file of a Hugging Face folder: config.json and safetensors (sharded too), and what"
        " is there of tokenizer.json, sentence-transformers settings and preprocessor_config.json. Or of a GGUF"
        " file (any part of a split one), of a llama2.c checkpoint, or of another model file, to store its weights in"
        " another type.",
    )
    parser.add_argument("source", metavar="SRC", help="Hugging Face folder, .gguf, model.bin of llama2.c, or .h5")
    parser.add_argument("output", metavar="OUT.h5", help="model file to write")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="storage of weights, on disk and in memory (default float32; of GGUF each tensor's own: q8_0, q4_0 and"
        " q4_1 stay as they are, other blocks become the one of these that keeps their numbers best)",
    )
    parser.add_argument("--tokenizer", metavar="FILE", help="tokenizer.bin that belongs to a llama2.c model.bin")
    parser.add_argument(
        "--check",
        action="store_true",
        help="hold the written file against SRC in transformers, on random inputs and texts; exit code 4 and no OUT.h5"
        " if they differ (needs transformers and PyTorch)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.config import require
    from astra_mpi.convert.gguf import convert_gguf
    from astra_mpi.convert.hugging_face import convert, restore
    from astra_mpi.convert.llama2c import convert_llama2c
    from astra_mpi.files.hdf5 import check_target
    from astra_mpi.files.modelfile import weight_shapes, write_model
    from astra_mpi.job.info import usage_of

    check_target(args.output)
    if args.check and Path(args.source).suffix != ".h5":
        from astra_mpi.convert.check.reference import require_libraries

        require_libraries(Path(args.source))
    kind, dtype = Path(args.source).suffix, args.dtype or "float32"
    command = f"convert {Path(args.source).resolve().name} {Path(args.output).name}"
    command += f" --dtype {args.dtype}" if args.dtype or kind != ".gguf" else ""
    if kind == ".bin":
        model, notes = convert_llama2c(args.source, args.tokenizer, dtype, command)
    else:
        require(args.tokenizer is None, "--tokenizer is for a llama2.c model.bin; others bring their own tokenizer")
        if kind == ".gguf":
            model, notes = convert_gguf(args.source, args.dtype, command)
        else:
            model, notes = (restore if kind == ".h5" else convert)(args.source, dtype, command)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if args.check:
        from astra_mpi.convert.check import write_checked

        digest = write_checked(Path(args.source), Path(args.output), model)
    else:
        digest = write_model(args.output, model)
    n_parameters = sum(prod(shape) for shape in weight_shapes(model.config).values())
    size = f"{n_parameters:,} parameters, {model.stored_dtype}"
    print(f"{args.output}: {model.config.family}, {size}, digest {digest[:12]}")
    for name, value in usage_of(model.config, model.preprocess, model.tokenizer is not None, model.provenance).items():
        print(f"  {name:<15}{value}")
    return 0
