"""astra-mpi calibrate: k-means codebooks from a model's activations, no training."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.codec.config import MAX_SINKS, METRICS
from astra_mpi.commands.options import add_codec_options, codec_config, in_blocks, require_torch

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.codec.codec import Codec
    from astra_mpi.codec.config import CodecConfig
    from astra_mpi.files.modelfile import ModelFile
    from astra_mpi.inputs.sources import Source


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "calibrate",
        help="k-means codebooks from activations",
        description="Runs the model on a sample of DATA, keeps what its blocks would send, and fits codebooks to it."
        " DATA: .txt (an item per line), .jsonl, .tsv; token ids or images in .npy, .npz or .h5. Under mpirun or srun,"
        " ranks share the work, and rank 0 alone reads DATA and writes; codebooks do not depend on how many they are.",
    )
    parser.add_argument("model", metavar="MODEL.h5", help="model file")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="items like those of later runs")
    parser.add_argument("--dataset", metavar="A,B", help="field, column(s) or dataset of FILE (default as in decks)")
    parser.add_argument("--prompt", metavar="NAME", help="put before texts; '': none (default as in decks)")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.h5", help="model file with codebooks to write")
    parser.add_argument("--codebook-only", action="store_true", help="write a codebook file for this model instead")
    parser.add_argument(
        "--samples", type=int, default=32768, metavar="N", help="tokens to fit to (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample and of k-means (default %(default)s)")
    parser.add_argument("--threads", type=int, metavar="N", help="of each rank (default SLURM_CPUS_PER_TASK, else 1)")
    group = add_codec_options(parser)
    group.add_argument(
        "--metric",
        default=METRICS[0],
        help="by what codes are nearest: keys-values, what they change in these (default); output, what they change in"
        " the model's answer, by gradients (needs PyTorch); or plain distance",
    )
    group.add_argument(
        "--sinks",
        default="auto",
        metavar="N",
        help=f"a decoder's first tokens that every rank computes exactly, 0 to {MAX_SINKS}; auto (default): as many as"
        " stand out by the attention that they get",
    )
    parser.add_argument(
        "--predict-rank", type=int, metavar="R", help="of the maps that predict; 0: whole (default: as needed)"
    )
    group.add_argument(
        "--awaited",
        default="auto",
        metavar="N",
        help="blocks that wait for their own codes with astra:late: so many, those that lateness costs most; or a list"
        " of blocks, such as 17,18,20 or 17,; auto (default): with --predict linear --metric output, those that stand"
        " out",
    )
    group.add_argument(
        "--keep-codebooks",
        action="store_true",
        help="with --predict next: the codebooks of MODEL.h5 stay, and maps are fitted to them",
    )
    parser.set_defaults(run=run, spmd=True)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.commands._fits import Fits
    from astra_mpi.config import require
    from astra_mpi.device.threads import set_threads
    from astra_mpi.errors import collective
    from astra_mpi.files.hdf5 import check_target
    from astra_mpi.files.modelfile import read_model
    from astra_mpi.ranks.watched import alone

    source = None
    with collective(comm), alone(comm, "opening files"):
        require(args.samples >= 1, f"--samples {args.samples}: at least one")
        require(args.seed >= 0, f"--seed {args.seed}: at least 0")
        rank = args.predict_rank
        require(rank is None or rank >= 0, f"--predict-rank {rank}: at least 1, or 0 for whole matrices")
        require(rank is None or args.predict != "none", "--predict-rank is for --predict linear or next; add one")
        threads = set_threads(args.threads)
        if args.metric == "output":
            require_torch("--metric output")
        model = read_model(args.model)
        kept = _kept(args, model)
        config = replace(codec_config(args, model.config.family, allots=True), sinks=_sinks(args.sinks))
        allots = args.bits is not None and config.rule.count == "stages"
        alike = not allots or (args.predict != "next" and args.every in (None, 1))
        require(alike, "--bits allots stages to blocks, for --predict none or linear without --every; give --stages")
        config = in_blocks(config, args, model.config.n_layers) if kept is None else _as_kept(kept)
        blocks, n_awaited = _awaited(args.awaited)
        config = replace(config, awaited=blocks)
        config.check_blocks(model.config.n_layers, f"--awaited {args.awaited}")
        if comm.Get_rank() == 0:
            check_target(args.output)
            source = _open(args, model)
    fits = Fits(args, comm, model, source, threads)
    if allots:
        config = fits.allotted(config)
    codec = fits.codec(config, kept=kept, n_awaited=n_awaited)
    with collective(comm), alone(comm, "writing codebooks"):
        if codec is not None:
            _write(args, model, codec)
    return 0


def _kept(args: argparse.Namespace, model: ModelFile) -> Codec | None:
    """The model's codebooks, where they are to stay."""
    from astra_mpi.config import require

    if not args.keep_codebooks:
        return None
    require(args.predict == "next", "--keep-codebooks is for --predict next, which fits maps to them; add it")
    codec = model.codec
    fits = codec is not None and codec.config.site == "normed" and not codec.config.has_maps
    require(fits, f"--keep-codebooks: {args.model} has no codebooks of site normed without maps; leave it out")
    return codec


def _as_kept(codec: Codec) -> CodecConfig:
    """Its config with maps; there are no codes in block 0."""
    return replace(codec.config, predict="next")


def _sinks(text: str) -> int:
    """The number that is asked for; 0 where it is to be measured."""
    from astra_mpi.config import require

    known = text == "auto" or (text.isascii() and text.isdigit())
    require(known, f"--sinks {text}: give auto or a number, 0 to {MAX_SINKS}")
    return 0 if text == "auto" else int(text)


def _awaited(text: str) -> tuple[tuple[int, ...], int | None]:
    """--awaited: the blocks that it names, and how many are to be measured, None: those that stand out."""
    from astra_mpi.config import require

    if text == "auto":
        return (), None
    words = text.removesuffix(",").split(",")
    known = all(word.isascii() and word.isdigit() and len(word) <= 6 for word in words)
    require(known, f"--awaited {text}: give auto, a number of blocks, or blocks such as 17,18,20")
    blocks = tuple(map(int, words))
    return (blocks, 0) if "," in text else ((), blocks[0])


def _write(args: argparse.Namespace, model: ModelFile, codec: Codec) -> None:
    from astra_mpi.files.codecfile import write_codebooks
    from astra_mpi.files.modelfile import write_model
    from astra_mpi.files.provenance import provenance
    from astra_mpi.planner.measured import USUAL_RANKS, measured

    made = provenance(_command(args), source=args.data.name)
    if args.codebook_only:
        write_codebooks(args.output, codec, model.digest, made)
    else:
        kept = model.provenance | {"calibrate": made["command"]}
        write_model(args.output, replace(model, codec=codec, provenance=kept))
    config, n_layers = codec.config, len(codec.blocks)
    bits = f"{round(config.mean_bits(n_layers), 2)} bits per token and block"
    if config.near:
        bits += f", {round(config.mean_bits(n_layers, near_share=1), 2)} of near ones"
    encoder, n = config.encoder, config.sinks
    exact = f", {n} first token{'s' * (n > 1)} exact" if n else ""
    if config.awaited:
        exact += f", blocks awaited where codes are late: {', '.join(map(str, config.awaited))}"
    print(f"{args.output}: {bits}, encoder {encoder}{exact}, codebooks {codec.digest[:12]}")
    about = measured(model.config.family, n_layers)
    known = about.told(about.like(config, n_layers), USUAL_RANKS)
    if known:
        print(f"such codes, measured on {about.on}: {known}; `plan` has others")


def _open(args: argparse.Namespace, model: ModelFile) -> Source:
    from astra_mpi.decks.deck import InputSection
    from astra_mpi.inputs.kinds import word_for
    from astra_mpi.inputs.opening import open_input

    kind = word_for(args.data, model.config)
    names = tuple(args.dataset.split(",")) if args.dataset else None
    dataset = names[0] if names and len(names) == 1 else names
    section = InputSection(args.data, kind, dataset)
    pairs = getattr(model.config, "pairs", False)
    return open_input(section, model.tokenizer, model.preprocess, model.config, prompt=args.prompt, pairs=pairs)


def _command(args: argparse.Namespace) -> str:
    """The command as typed, files without their folders."""
    names = (
        "dataset",
        "prompt",
        "samples",
        "seed",
        "kind",
        "groups",
        "stages",
        "bits",
        "near",
        "near_stages",
        "codebook_size",
        "site",
        "encoder",
        "metric",
        "sinks",
        "predict",
        "predict_rank",
        "predict_inputs",
        "every",
        "awaited",
        "keep_codebooks",
    )
    unset = (None, "none", False)
    shown = [name for name in names if args.near or not name.startswith("near")]
    shown = [name for name in shown if args.awaited != "auto" or name != "awaited"]
    shown = [name for name in shown if args.predict_inputs or name != "predict_inputs"]
    given = [(name.replace("_", "-"), getattr(args, name)) for name in shown if getattr(args, name) not in unset]
    options = [f"--{name}" if value is True else f"--{name} {value}" for name, value in given]
    return " ".join(["calibrate", Path(args.model).name, "--data", args.data.name, *options])
