"""The deck of `astra-mpi train`: a TOML file -> frozen dataclasses. All sections and keys are on this page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from astra_mpi.codec.config import COUNTS, KINDS, CodecConfig, CodecKind
from astra_mpi.config import require
from astra_mpi.decks.deck import given_settings
from astra_mpi.decks.input_kinds import InputWord
from astra_mpi.decks.settings import Positive, build
from astra_mpi.errors import InputError

#: what does not change a run's result, so that a checkpoint may be continued under another value
_FREE = {("train", "threads"), ("train", "resume"), ("train", "checkpoint_every"), ("train", "log_every")}
_LATE = 'codec.codes = "late" begins with predicted codes'


@dataclass(frozen=True)
class ModelSection:
    path: Path | None = None  # the model file to start from. Without one, [shape] says what to make
    # codec.init = "model": a codebook file for the model. Default those in the model file
    codebooks: Path | None = None


@dataclass(frozen=True)
class ShapeSection:
    """A model from random weights. Widths of heads and classes follow from the rest and from the data."""

    family: Literal["vit", "gpt2", "llama"] | None = None  # required in this section
    d_model: Positive = 128  # width of a token
    n_heads: Positive = 4  # heads of a block
    n_layers: Positive = 4  # blocks
    d_ff: Positive | None = None  # inner width of the MLP. Default 4 * d_model
    patch_size: Positive = 4  # images: pixels along the side of a patch
    max_tokens: Positive = 256  # text: positions of the model
    vocabulary: Positive = 2048  # text: size of the byte-level BPE vocabulary, made from data.train


@dataclass(frozen=True)
class DataSection:
    train: Path  # required: the training items, a path as input.path of `astra-mpi run`
    kind: InputWord  # required: as input.kind. Decoders read a .txt as one text
    valid: Path | None = None  # validation items. Default: a share `holdout` of the training items
    holdout: float = 0.1  # this share, drawn by train.seed
    dataset: str | tuple[str, ...] | None = None  # as input.dataset
    labels: str | None = None  # as input.labels
    mask: str | None = None  # as input.mask
    max_tokens: Positive | None = None  # longer items are cut to so many tokens. Default the model's own


@dataclass(frozen=True)
class CodecSection:
    kind: CodecKind | Literal["none"] = "residual"  # "none": train the exact model, without codebooks
    groups: Positive = 1  # grouped: parts of a vector, each with a codebook
    stages: Positive = 4  # residual: codebooks, each for what those before it leave over
    codebook_size: Positive = 256  # entries of a codebook
    # what is quantised: block input, normalised input, keys and values. Default the family's own
    site: Literal["hidden", "normed", "kv"] | None = None
    # where the nearest entry is searched: whole width, or a subspace
    encoder: Literal["exact", "auto", "subspace"] = "exact"
    # what "nearest" means: least change of keys and values, or least distance (docs/explanation/equations.md). Site kv
    # and two groups or more always have plain
    metric: Literal["keys-values", "plain"] = "keys-values"
    sinks: int = 0  # a decoder's first tokens that every rank computes exactly, 0 to 8 (docs/explanation/method.md)
    # "model": begin with the codebooks of [model]; the keys above are not read
    init: Literal["kmeans", "model"] = "kmeans"
    samples: Positive = 32768  # init = "kmeans": tokens that k-means sees
    # how entries learn. Default "adam" if only codebooks learn or codes are late, else "ema"
    update: Literal["ema", "adam"] | None = None
    decay: float = 0.99  # of the moving averages of codebooks and noise
    # an entry that is used less often than this share of the mean is replaced by a vector of the batch, but not in the
    # last quarter of the steps; 0: never. Default 0.02, with update = "adam" 0
    revive: float | None = None
    noise: float | None = None  # strength (lambda). Default 1, and 0 if only codebooks learn or codes are late
    beta: float = 2e-4  # weight of the quantisation error in the loss
    # how the first block sees far tokens: by their codes, or exactly (`parallel.first` of a run)
    first: Literal["codes", "inputs"] = "codes"
    # "late": blocks see far tokens as predicted from codes up to the block before (`parallel.codes` of a run)
    codes: Literal["fresh", "late"] = "fresh"
    # a copy on every rank, or one on rank 0 (for comparisons only)
    class_token: Literal["distributed", "single"] = "distributed"

    @property
    def is_exact(self) -> bool:
        """Whether nothing is quantised."""
        return self.kind not in KINDS

    def config(self, default_site: str) -> CodecConfig:
        trains = " or ".join(name for name, rule in KINDS.items() if rule.trains)
        require(
            KINDS[self.kind].trains,
            f"codec.kind = '{self.kind}' begins with what calibrate fitted: give model.codebooks and codec.init = "
            f'"model", or use {trains}',
        )
        counts = {name: getattr(self, name) for name in COUNTS if name == KINDS[self.kind].count}
        site, encoder, sinks = self.site or default_site, self.encoder, self.sinks
        return CodecConfig(site, self.kind, self.codebook_size, encoder=encoder, sinks=sinks, **counts)


@dataclass(frozen=True)
class TrainSection:
    steps: Positive  # required: optimiser steps
    batch: Positive = 64  # items per step, of all ranks together
    learn: Literal["all", "norms", "codebooks"] = "all"  # what changes; "norms": weights of norms and codebooks
    # towards labels (decoders: the next token), or the exact model. Default labels, for BERT distill
    loss: Literal["labels", "distill"] | None = None
    similarity: float = 1.0  # distillation of embeddings: weight of the similarities between the items of a batch
    ranks: tuple[Positive, ...] = (2, 4, 8)  # numbers of ranks that are trained for; every step draws one
    cuts: Literal["random", "even"] = "random"  # how every step cuts the tokens over these ranks
    lr: float = 1e-3  # highest learning rate of weights
    codebook_lr: float = 1e-3  # update = "adam": learning rate of entries, relative to the size of what they quantise
    predictor_lr: float = 1e-4  # the same of predictors' maps and biases, relative to their size
    weight_decay: float = 0.05  # of matrices only
    warmup: float = 0.05  # share of the steps in which the rate rises
    floor: float = 0.01  # rate at the end, relative to the highest
    clip: float = 1.0  # largest norm of the gradient
    smoothing: float = 0.0  # of labels, in the cross entropy
    augment: Literal["none", "shift", "shift-flip"] = "none"  # images: moved by up to an eighth, and mirrored at random
    # of products; "auto": bfloat16 if the device of every rank has instructions for it
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    # whether blocks keep nothing but their inputs for the gradient and are computed again: less memory, more time
    recompute: bool = False
    device: Literal["auto", "cpu", "cuda"] = "auto"  # of PyTorch; "auto": a GPU if there is one
    seed: int = 0  # of all that is drawn at random
    eval_every: Positive = 200  # steps between two validations
    eval_ranks: Positive = 4  # number of ranks for which validation measures
    eval_items: Positive | None = None  # validation items that are used. Default all
    log_every: Positive = 10  # steps between two lines of the log
    checkpoint_every: Positive = 200  # steps between two checkpoints
    resume: bool = True  # true: go on from the checkpoint; false: start again
    threads: Positive | None = None  # threads per rank. Default SLURM_CPUS_PER_TASK, else 1


@dataclass(frozen=True)
class OutputSection:
    # required: the model or codebook file; beside it <stem>.jsonl (log), <stem>.png (curve), <stem>.checkpoint.h5
    # while training
    path: Path
    codebooks_only: bool = False  # write a codebook file for model.path instead of a model file
    dtype: Literal["float32", "float16"] = "float32"  # in which weights and entries are stored


@dataclass(frozen=True)
class TrainDeck:
    model: ModelSection
    shape: ShapeSection
    data: DataSection
    codec: CodecSection
    train: TrainSection
    output: OutputSection

    def beside(self, suffix: str) -> Path:
        return self.output.path.with_name(self.output.path.stem + suffix)

    def as_dict(self) -> dict[str, Any]:
        """All settings with their defaults, as JSON types; files without their folders."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self), default=lambda path: path.name))
        return settings

    def digest(self, *facts: str) -> str:
        """What a checkpoint belongs to: sha256 over the settings that change results, and `facts`."""
        settings = [
            (section, key, value)
            for section, keys in self.as_dict().items()
            for key, value in keys.items()
            if section != "output" and (section, key) not in _FREE
        ]
        return hashlib.sha256(json.dumps([settings, facts]).encode()).hexdigest()


def load_train_deck(path: str | Path, overrides: Iterable[str] = ()) -> TrainDeck:
    """Read and check a deck, as `astra_mpi.decks.deck.load_deck` does."""
    given = given_settings(path, TrainDeck, overrides)
    deck: TrainDeck = build(TrainDeck, given, str(path))
    try:
        _check(deck)
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    return deck


def _check(deck: TrainDeck) -> None:
    """What no single value shows."""
    codec, train = deck.codec, deck.train
    require(
        (deck.model.path is None) != (deck.shape.family is None),
        "give model.path to start from a model file, or shape.family to start from random weights",
    )
    require(deck.model.codebooks is None or codec.init == "model", 'model.codebooks is for codec.init = "model"')
    require(codec.init == "kmeans" or deck.model.path is not None, 'codec.init = "model" needs model.path')
    require(codec.codes == "fresh" or codec.init == "model", f'{_LATE}: codec.init = "model"')
    if not codec.is_exact:
        codec.config("hidden")
    require(not codec.is_exact or train.learn == "all", f"train.learn = '{train.learn}' needs codebooks (codec.kind)")
    require(
        train.learn == "all" or deck.model.path is not None, f"train.learn = '{train.learn}' needs a trained model.path"
    )
    require(
        not deck.output.codebooks_only or (train.learn == "codebooks" and not codec.is_exact),
        'output.codebooks_only is for train.learn = "codebooks": other weights change too',
    )
    require(train.loss != "distill" or not codec.is_exact, 'train.loss = "distill" needs codebooks (codec.kind)')
    require(train.seed >= 0, f"train.seed = {train.seed}: at least 0")
    for name, value, top in (
        ("data.holdout", deck.data.holdout, 0.9),
        ("codec.decay", codec.decay, 0.999999),
        ("codec.revive", codec.revive or 0.0, 1.0),
        ("train.warmup", train.warmup, 1.0),
        ("train.floor", train.floor, 1.0),
        ("train.smoothing", train.smoothing, 0.9),
    ):
        require(0 <= value <= top, f"{name} = {value:g} is outside 0..{top:g}")
    for name in ("lr", "codebook_lr", "predictor_lr", "clip"):
        value = getattr(train, name)
        require(value > 0, f"train.{name} = {value:g} must be above 0")
    for name, value in (
        ("codec.beta", codec.beta),
        ("codec.noise", codec.noise or 0),
        ("similarity", train.similarity),
    ):
        require(value >= 0, f"{name} = {value:g}: at least 0")


def check_start(deck: TrainDeck, config: CodecConfig) -> None:
    """InputError on codebooks to begin with that the (resolved) deck cannot train."""
    codec, what = deck.codec, f"codebooks of kind '{config.kind}'"
    require(codec.codes == "fresh" or config.predicts, f"{_LATE}: calibrate --predict linear makes them")
    what = "predicted codes" if config.predicts else "codes with more stages near slices" if config.near else what
    if not (config.predicts or config.near or config.rule.transforms):
        return
    require(codec.update == "adam", f'{what} learn by their gradients: codec.update = "adam", not "{codec.update}"')
    require(not codec.revive, f"{what} have no entries that begin anew: codec.revive = 0, not {codec.revive:g}")
    require(not codec.noise, f"{what} are trained without noise: codec.noise = 0, not {codec.noise:g}")


def resolved(deck: TrainDeck, family: str) -> TrainDeck:
    """The deck with the defaults that depend on others filled in."""
    only = deck.train.learn != "all" or deck.codec.codes == "late"
    update = deck.codec.update or ("adam" if only else "ema")
    codec = replace(
        deck.codec,
        update=update,
        revive=(0.0 if update == "adam" else 0.02) if deck.codec.revive is None else deck.codec.revive,
        noise=(0.0 if only else 1.0) if deck.codec.noise is None else deck.codec.noise,
    )
    loss = deck.train.loss or ("distill" if family in ("bert", "encoder") else "labels")
    return replace(deck, codec=codec, train=replace(deck.train, loss=loss))
