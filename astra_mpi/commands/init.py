"""astra-mpi init: a random model of a named shape, with codebooks."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from astra_mpi.commands.options import add_codec_options, codec_config


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
    parser.add_argument("--seed", type=int, default=0, help="of weights, input and codebooks (default %(default)s)")
    add_codec_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.modelfile import write_model
    from astra_mpi.presets import preset_config, random_model
    from astra_mpi.progress import Progress
    from astra_mpi.provenance import provenance
    from astra_mpi.threads import set_threads

    set_threads()
    config = preset_config(args.preset, args.tokens)
    codec = codec_config(args, config.family)
    bar = Progress(config.n_layers * (2 if codec.site == "kv" else 1), unit="codebook")
    model = random_model(config, codec, args.seed, lambda done, total: bar.advance(1))
    bar.close()
    model = dataclasses.replace(model, provenance=provenance(_command(args), source="random weights"))
    digest = write_model(args.output, model)
    print(f"{args.output}: {args.preset}, {codec.bits_per_token} bits per token and block, digest {digest[:12]}")
    return 0


def _command(args: argparse.Namespace) -> str:
    """The command as typed, the output without its folder."""
    names = ("tokens", "seed", "kind", "groups", "stages", "codebook_size", "site")
    given = [(name.replace("_", "-"), getattr(args, name)) for name in names if getattr(args, name) is not None]
    return " ".join(["init", args.preset, Path(args.output).name, *(f"--{name} {value}" for name, value in given)])
