"""Codec options, the same for every command that makes codebooks."""

from __future__ import annotations

import argparse

from astra_mpi.codec.config import COUNTS, KINDS, CodecConfig, check_counts
from astra_mpi.codec.counts import stages_of
from astra_mpi.config import require
from astra_mpi.errors import InputError


def add_codec_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group, with --kind, --groups, --stages, --codebook-size, --site, --encoder, --predict."""
    group = parser.add_argument_group("codec options")
    kinds = " or ".join(KINDS)
    group.add_argument("--kind", default="residual", help=f"{kinds} codebooks (default %(default)s)")
    group.add_argument("--groups", type=int, metavar="G", help="sub-vectors, for --kind grouped (default 1)")
    group.add_argument(
        "--stages",
        metavar="M",
        help="stages, for --kind residual (default 4); or of every block, such as 0,3x8,2x12; 4+2: of keys and values",
    )
    group.add_argument(
        "--bits",
        type=int,
        metavar="N",
        help="per token and sending block: of directions (scalar), or stages of blocks",
    )
    group.add_argument(
        "--near", type=int, default=0, metavar="G", help="tokens of a slice next to another one that have more stages"
    )
    group.add_argument(
        "--near-stages", type=int, default=0, metavar="M", help="how many more they have (default %(default)s)"
    )
    group.add_argument(
        "--codebook-size", type=int, default=256, metavar="K", help="entries per codebook (default %(default)s)"
    )
    group.add_argument(
        "--encoder", default="auto", help="exact, subspace, or auto: a subspace where it saves at most 1%% in error"
    )
    group.add_argument(
        "--predict",
        default="none",
        help="what codes stand for: the vector (none, default), or what a prediction from the state before misses"
        " (linear; --site normed); next: the vector, and maps from it serve blocks whose codes are late or none",
    )
    group.add_argument(
        "--predict-inputs",
        type=int,
        default=0,
        metavar="N",
        help="with --predict linear: inputs that it predicts from, too; 1: the token's own, N: also those of the N - 1"
        " tokens before it (default %(default)s)",
    )
    group.add_argument(
        "--every",
        type=int,
        metavar="N",
        help="codes in blocks 1, 1 + N, .. alone, with what the others spare; with --predict (default 1)",
    )
    group.add_argument(
        "--site", help="what is sent: hidden, normed or kv (default: BERT hidden, ViT and GPT-2 normed, Llama kv)"
    )
    return group


def _vector_bits(args: argparse.Namespace, site: str) -> int:
    """--bits, of a codebook's vector: half with site kv, which has a codebook of keys and one of values."""
    n_books = 2 if site == "kv" else 1
    require(args.bits is not None, f"--kind {args.kind} needs --bits: how many a token has per block")
    require(args.bits >= 0, f"--bits {args.bits}: at least 0")
    even = args.bits % n_books == 0
    require(even, f"--bits {args.bits}: site {site} gives half to keys and half to values; use an even number")
    return args.bits // n_books


def codec_config(args: argparse.Namespace, family: str, allots: bool = False) -> CodecConfig:
    """The options as a config for a model of `family`; InputError on values that do not exist or do not go together.

    allots: --bits may also be of stages, which the caller then allots to blocks.
    """
    from astra_mpi.models import FAMILIES

    counts = {name: value for name in COUNTS if (value := getattr(args, name, None)) is not None}
    if "stages" in counts:
        counts["stages"] = stages_of(counts["stages"])
    check_counts(args.kind, counts, dashes="--", equals=" ")
    site = args.site or ("normed" if args.predict != "none" else FAMILIES[family].default_site)
    if KINDS[args.kind].count == "vector_bits":
        counts["vector_bits"] = _vector_bits(args, site)
    elif args.bits is not None:
        fits = allots and KINDS[args.kind].count == "stages"
        where = "" if allots else " here, where nothing is measured to allot stages by"
        require(fits, f"--bits is not for --kind {args.kind}{where}; leave it out")
        require(args.stages is None, "--bits allots the stages; leave --stages out")
    named = {"kind": args.kind, "codebook_size": args.codebook_size, "encoder": args.encoder, "predict": args.predict}
    more = {"near": args.near, "near_stages": args.near_stages, "inputs": args.predict_inputs}
    return CodecConfig(site=site, **named, **counts, **more)


def in_blocks(config: CodecConfig, args: argparse.Namespace, n_layers: int) -> CodecConfig:
    """A config of `codec_config`, with stages for each block or as --every shares its codes out to blocks."""
    from astra_mpi.codec.every import in_every

    config.check_blocks(n_layers, f"--stages {args.stages}")
    return config if args.every in (None, 1) else in_every(config, args.every, n_layers)


def require_torch(what: str) -> None:
    """InputError that names `what` and the cure where PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as exc:
        raise InputError(
            f"{what} needs PyTorch; pip install 'astra-mpi[train]' (without a GPU, with"
            " --extra-index-url https://download.pytorch.org/whl/cpu)"
        ) from exc
