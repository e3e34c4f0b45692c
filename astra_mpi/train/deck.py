"""The deck of `astra-mpi train`: a TOML file -> frozen dataclasses. All sections and keys are on this page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from astra_mpi.config import CodecConfig, require
from astra_mpi.decks.deck import given_settings
from astra_mpi.decks.settings import Positive, build
from astra_mpi.errors import InputError

#: what does not change a run's result, so that a checkpoint may be continued under another value
_FREE = {("train", "threads"), ("train", "resume"), ("train", "checkpoint_every"), ("train", "log_every")}


@dataclass(frozen=True)
class ModelSection:
    path: Path | None = None  # the model file to start from; without one, [shape] says what to make
    codebooks: Path | None = None  # a codebook file for it, for codec.init = "model"


@dataclass(frozen=True)
class ShapeSection:
    """A model from random weights. Widths of heads and classes follow from the rest and from the data."""

    family: Literal["vit", "gpt2", "llama"] | None = None
    d_model: Positive = 128
    n_heads: Positive = 4
    n_layers: Positive = 4
    d_ff: Positive | None = None  # default 4 * d_model
    patch_size: Positive = 4  # images
    max_tokens: Positive = 256  # text: positions
    vocabulary: Positive = 2048  # text: size of the byte-level BPE vocabulary, made from data.train


@dataclass(frozen=True)
class DataSection:
    train: Path  # required: as input.path of `astra-mpi run`
    kind: Literal["images", "text", "tokens"]  # required: as input.kind; decoders read a .txt as one running text
    valid: Path | None = None  # default: the share `holdout` of the training items, chosen by train.seed
    holdout: float = 0.1
    dataset: str | tuple[str, ...] | None = None  # as input.dataset
    labels: str | None = None  # as input.labels
    mask: str | None = None  # as input.mask
    max_tokens: Positive | None = None  # default the model's own


@dataclass(frozen=True)
class CodecSection:
    kind: Literal["residual", "grouped", "none"] = "residual"  # "none": train the exact model
    groups: Positive = 1
    stages: Positive = 4
    codebook_size: Positive = 256
    site: Literal["hidden", "normed", "kv"] | None = None  # default the family's own
    encoder: Literal["exact", "auto", "subspace"] = "exact"  # where entries are searched, while training as later
    # by what codes are nearest: what they change in keys and values, or distance (docs/explanation/equations.md);
    # site kv and two groups or more have the latter
    metric: Literal["keys-values", "plain"] = "keys-values"
    init: Literal["kmeans", "model"] = "kmeans"  # "model": the codebooks of [model]; the keys above are then not read
    samples: Positive = 32768  # tokens for k-means
    update: Literal["ema", "adam"] | None = None  # default "adam" where only codebooks learn, else "ema"
    decay: float = 0.99  # of the moving averages of codebooks and noise
    # an entry used less often than this share of the mean is put into the batch again, save in the last quarter of the
    # steps; 0: never. Default 0.02, with update = "adam" 0
    revive: float | None = None
    noise: float | None = None  # lambda; default 1, where only codebooks learn 0
    beta: float = 2e-4  # commitment
    # how the first block sees far tokens: through its codebooks, or exactly (`parallel.first` of a run)
    first: Literal["codes", "inputs"] = "codes"
    class_token: Literal["distributed", "single"] = "distributed"  # one replica per rank, or one on rank 0 (ablation)

    def config(self, default_site: str) -> CodecConfig:
        counts = {"groups": self.groups} if self.kind == "grouped" else {"stages": self.stages}
        return CodecConfig(self.site or default_site, self.kind, self.codebook_size, encoder=self.encoder, **counts)


@dataclass(frozen=True)
class TrainSection:
    steps: Positive  # required
    batch: Positive = 64  # items per step, of all ranks together
    learn: Literal["all", "norms", "codebooks"] = "all"  # norms: and codebooks; the rest stays as it is
    loss: Literal["labels", "distill"] | None = None  # default labels (decoders: the next token), for BERT distill
    similarity: float = 1.0  # weight of the batch's similarity matrix in the distillation of embeddings
    ranks: tuple[Positive, ...] = (2, 4, 8)  # P is drawn from these, batch by batch
    cuts: Literal["random", "even"] = "random"
    lr: float = 1e-3  # highest rate of weights
    codebook_lr: float = 1e-3  # of entries (update = "adam"), over the root mean square of what they quantise
    weight_decay: float = 0.05  # of matrices
    warmup: float = 0.05  # share of the steps
    floor: float = 0.01  # of the rate at the end, over the highest
    clip: float = 1.0  # norm of the gradient
    smoothing: float = 0.0  # of labels
    augment: Literal["none", "shift", "shift-flip"] = "none"  # images: moved by up to an eighth, and mirrored
    precision: Literal["float32", "bfloat16", "auto"] = "float32"  # of products; "auto": start.halves
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    eval_every: Positive = 200  # steps
    eval_ranks: Positive = 4
    eval_items: Positive | None = None  # default all of the validation items
    log_every: Positive = 10
    checkpoint_every: Positive = 200
    resume: bool = True
    threads: Positive | None = None  # per rank; default SLURM_CPUS_PER_TASK, else 1


@dataclass(frozen=True)
class OutputSection:
    path: Path  # required; beside it <stem>.jsonl (log), <stem>.png (curve), <stem>.checkpoint.h5 while training
    codebooks_only: bool = False  # write a codebook file for model.path instead of a model file
    dtype: Literal["float32", "float16"] = "float32"


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
    if codec.kind != "none":
        codec.config("hidden")
    require(codec.kind != "none" or train.learn == "all", f"train.learn = '{train.learn}' needs codebooks (codec.kind)")
    require(
        train.learn == "all" or deck.model.path is not None, f"train.learn = '{train.learn}' needs a trained model.path"
    )
    require(
        not deck.output.codebooks_only or (train.learn == "codebooks" and codec.kind != "none"),
        'output.codebooks_only is for train.learn = "codebooks": other weights change too',
    )
    require(train.loss != "distill" or codec.kind != "none", 'train.loss = "distill" needs codebooks (codec.kind)')
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
    for name, value in (("train.lr", train.lr), ("train.codebook_lr", train.codebook_lr), ("train.clip", train.clip)):
        require(value > 0, f"{name} = {value:g} must be above 0")
    for name, value in (
        ("codec.beta", codec.beta),
        ("codec.noise", codec.noise or 0),
        ("similarity", train.similarity),
    ):
        require(value >= 0, f"{name} = {value:g}: at least 0")


def resolved(deck: TrainDeck, family: str) -> TrainDeck:
    """The deck with the defaults that depend on others filled in."""
    only = deck.train.learn != "all"
    update = deck.codec.update or ("adam" if only else "ema")
    codec = replace(
        deck.codec,
        update=update,
        revive=(0.0 if update == "adam" else 0.02) if deck.codec.revive is None else deck.codec.revive,
        noise=(0.0 if only else 1.0) if deck.codec.noise is None else deck.codec.noise,
    )
    loss = deck.train.loss or ("distill" if family in ("bert", "encoder") else "labels")
    return replace(deck, codec=codec, train=replace(deck.train, loss=loss))
