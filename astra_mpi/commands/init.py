"""astra-mpi init: a random model of a named shape, with codebooks."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from astra_mpi.commands.options import add_codec_options, codec_config, in_blocks
from astra_mpi.device.formats import DTYPES


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "init",
        help="a randomly initialised model of a named shape",
        description="Makes a model with random weights and codebooks fitted to its own activations on random input,"
        " for latency work: vit-tiny, vit-base, bert-tiny, bert-base, gpt2-tiny, gpt2, gpt2-medium, llama-tiny,"
        " llama-3.2-1b, llama-3-8b.",
    )
    parser.add_argument("preset", metavar="PRESET", help="name of a shape")
    parser.add_argument("output", metavar="OUT.h5", help="model file to write")
    parser.add_argument("--tokens", type=int, metavar="T", help="patches, or positions, instead of the shape's own")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="storage of weights (default %(default)s)")
    parser.add_argument(
        "--no-codebooks", action="store_true", help="weights only, made and written one at a time: for large models"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, input and codebooks (default %(default)s)")
    add_codec_options(parser)
    parser.set_defaults(run=run, uses_mpi=True)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.convert.presets import preset_config, random_model
    from astra_mpi.device.threads import set_threads
    from astra_mpi.files.hdf5 import check_target
    from astra_mpi.files.modelfile import write_model
    from astra_mpi.files.provenance import provenance
    from astra_mpi.job.progress import Progress

    check_target(args.output)
    set_threads()
    config = preset_config(args.preset, args.tokens)
    codec = None if args.no_codebooks else in_blocks(codec_config(args, config.family), args, config.n_layers)
    bar = Progress(0 if codec is None else config.n_layers, unit="block")
    model = random_model(config, codec, args.seed, lambda done, total: bar.reach(done), args.dtype)
    bar.close()
    model = dataclasses.replace(model, provenance=provenance(_command(args), source="random weights"))
    digest = write_model(args.output, model)
    coded = f"{round(codec.mean_bits(config.n_layers), 2)} bits per token and block" if codec else "no codebooks"
    print(f"{args.output}: {args.preset}, {args.dtype}, {coded}, digest {digest[:12]}")
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command as typed, the output without its folder."""
    names = ("tokens", "dtype", "seed", "kind", "groups", "stages", "bits", "codebook_size", "site", "every")
    given = [(name.replace("_", "-"), getattr(args, name)) for name in names if getattr(args, name) is not None]
    flags = ["--no-codebooks"] if args.no_codebooks else []
    options = [f"--{name} {value}" for name, value in given]
    return " ".join(["init", args.preset, Path(args.output).name, *options, *flags])
