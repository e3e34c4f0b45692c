"""The input deck: a TOML file of settings -> frozen dataclasses. All sections and keys are on this page."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from astra_mpi.config import require
from astra_mpi.decks.input_kinds import InputWord
from astra_mpi.decks.settings import Given, Positive, build, check_name
from astra_mpi.errors import InputError
from astra_mpi.network.units import duration_s


@dataclass(frozen=True)
class ModelSection:
    path: Path  # required: the model file
    codebooks: Path | None = None  # a codebook file, used instead of the codebooks in the model file; default none


@dataclass(frozen=True)
class InputSection:
    path: Path  # required: .txt .jsonl .tsv (text), .npy .npz .h5 (tokens, images), a folder of PNG and JPEG (images)
    kind: InputWord  # required: what the file holds
    # name of the HDF5 dataset, .npz key, JSONL field, TSV column; several fields or columns: each of them is an item.
    # Default "text" for text, else `kind`
    dataset: str | tuple[str, ...] | None = None
    # name of the integer classes in the same file; for a folder, of a file in it, lines NAME<TAB>CLASS. Default none
    labels: str | None = None
    mask: str | None = None  # tokens: name of a dataset (N, T) in the file; 0 leaves the token out. Default none
    # longer items are cut to so many tokens. Default the model's own; generate: none, and longer prompts are errors
    max_tokens: Positive | None = None
    pair: str | None = None  # classify, rerank: field of the second texts; default "text_pair", where an item has one
    whole: bool = False  # true: a .txt file is one item, with its line breaks; false: each line is one
    # take only shard I of N: "I/N", or "array/N" in a SLURM job array; output.path gets the shard's number
    # (docs/reference/inputs.md). Default all items
    shard: str | None = None
    shard_by: Literal["contiguous", "strided"] = "contiguous"  # which items a shard has: neighbours, or every N-th


@dataclass(frozen=True)
class TaskSection:
    # required: classify gives class logits, rerank scores of pairs of texts and their order, embed one vector per item,
    # perplexity how well a text is predicted, generate what follows a prompt
    name: Literal["classify", "rerank", "embed", "perplexity", "generate"]
    # embed: how tokens become one vector. Default the model's own. A classifier of texts is taken off
    pooling: Literal["mean", "cls", "pooler"] | None = None
    normalize: bool | None = None  # embed: whether vectors are scaled to length 1. Default the model's own
    # embed: name of the model's prompt that is put before every text; false: nothing. Default its default prompt
    prompt: bool | str | None = None
    # perplexity: windows begin so many tokens apart; a window has input.max_tokens. Default half of it
    stride: Positive | None = None
    # generate (docs/reference/generate.md): required, the most tokens that follow a prompt
    max_new_tokens: Positive | None = None
    temperature: float = 0.0  # generate: 0 takes the most likely token; above, one is drawn, from logits divided by it
    top_k: Positive | None = None  # generate: draw from so many of the most likely tokens. Default all
    # generate: of these, draw from the fewest most likely ones that together have this probability. Default all
    top_p: float | None = None
    # generate: tokens after which a text ends, beside the model's own: ids, or strings that are one token. Default none
    stop: int | str | tuple[int | str, ...] | None = None
    ignore_end: bool = False  # generate: true goes on after the model's own end tokens
    # generate: local: one rank goes on with a text; merged: all ranks keep their keys and values and merge;
    # auto: local, or on an emulated network what is predicted to be faster
    decode: Literal["auto", "local", "merged"] = "auto"
    # generate, local: far tokens that came as codes are kept as keys and values, which is fast, or as codes, which is
    # small (docs/explanation/decode.md)
    far: Literal["keys", "codes"] = "keys"
    # generate: what guesses next tokens, several of which one pass checks: "lookup", what came after the same tokens
    # before, or a small model's file (docs/explanation/drafts.md). Default no drafts
    draft: Literal["lookup"] | Path | None = None
    draft_tokens: Positive | None = None  # generate: guesses of a text that one pass checks, at most. Default 15
    stream: bool | None = None  # generate: print texts as they come. Default if stderr is a terminal and run.batch = 1


@dataclass(frozen=True)
class ParallelSection:
    # what ranks own and exchange: single, sp, tp, segment_means or astra, perhaps with options, as in "sp:kv:int8"
    # (docs/reference/strategies.md). auto: astra if the model has codebooks, else the exact strategy that is predicted
    # to be fastest here (docs/explanation/planner.md)
    strategy: str = "auto"
    # the ranks as replicas x stages x tokens, such as "4x1x1": replicas compute different batches, the ranks of one
    # share the tokens of its sequences; "auto": predicted to finish the job soonest (docs/explanation/grid.md).
    # Default: all ranks share tokens
    grid: str | None = None
    # of a grid with stages: blocks of each stage, "even", or "auto" by the speed and free memory of its ranks
    stages: Literal["auto", "even"] | tuple[Positive, ...] = "auto"
    handed_on: Literal["float32", "float16", "int8"] = "float16"  # the type of activations between stages
    # how tokens are cut over ranks: "even", or so that ranks of unequal speed finish together: "auto" measures the
    # speeds, "causal" (decoders) takes them as equal, or give one relative speed per rank that shares tokens
    weights: Literal["even", "auto", "causal"] | tuple[float, ...] = "even"
    # which kernels: Numba, plain NumPy (slow, for checks), or a GPU per rank
    backend: Literal["numpy", "reference", "cuda"] = "numpy"
    transport: Literal["host", "cuda-aware"] = "host"  # cuda: whether MPI is given host memory or the GPU's
    precision: Literal["float32", "tf32", "float16"] = "float32"  # cuda: of weights, activations and products
    # numpy: type in which products are computed; auto: the fastest one that changes this model's answers by little
    # (docs/explanation/compute.md)
    compute: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    counted_keys: bool = True  # far tokens of equal code share one key; the answer is the same
    remote: Literal["auto", "table", "gemm"] = "auto"  # far keys from projected codebooks, or by GEMM; auto times both
    # a batch of several items as two halves in turns, of which one computes while the exchange of the other travels;
    # auto: where that is predicted to be faster, and never with several replicas (docs/explanation/waiting.md)
    halves: Literal["auto"] | bool = "auto"
    gather: Literal["x", "kv"] | None = None  # sp sends block inputs (x), or keys and values (kv). Default "x"
    wire: Literal["float32", "float16", "int8"] | None = None  # the type in which sp sends them. Default "float32"
    ratio: Positive | None = None  # segment_means: tokens per mean. Default 8
    # how astra's first block sees far tokens: by their codes, or exactly, from the inputs, without an exchange.
    # Default "codes"
    first: Literal["codes", "inputs"] | None = None
    # what far tokens of astra are in a block with predicted codes: what its own codes made of them (fresh), or what was
    # predicted while these travel (late; docs/explanation/predicted.md). Default "fresh"
    codes: Literal["fresh", "late"] | None = None
    network: str = "real"  # or one to emulate: "10Mbps,rtt=2ms,loss=1%" (docs/explanation/network.md)
    accounting: Literal["port", "contributed", "paper"] = "port"  # which bytes the emulated network charges
    clock: Literal["wall", "virtual"] = "wall"  # virtual: CPU time of each rank plus the emulated network
    # virtual clock: a CPU second counts as so many seconds; one number for all ranks, or one per rank
    speed: float | tuple[float, ...] = 1.0
    deadline: str | None = None  # how long astra waits at an exchange, such as "5ms". Default: until all is there
    # tokens whose codes do not come: left out, replaced by the mean, or as predicted; auto: predict with codebooks that
    # do, else drop
    missing: Literal["auto", "drop", "mean", "predict"] = "auto"

    @property
    def spec(self) -> str:
        """`strategy` with the keys beside it, as one word. InputError on what does not exist or gives no answers."""
        from astra_mpi.strategies import AUTO, STRATEGIES, parse_request  # MPI starts with them; others need none

        options = {key: getattr(self, key) for key in ("gather", "wire", "ratio", "first", "codes")}
        spec = parse_request(self.strategy, **options)
        reason = "" if spec.name == AUTO else STRATEGIES[spec.name].latency_only
        require(not reason, f"strategy '{spec}' is for `astra-mpi bench`, {reason}")
        return str(spec)

    @property
    def is_auto(self) -> bool:
        """Whether the job chooses the strategy for its first batch."""
        from astra_mpi.strategies import AUTO, parse_request

        return parse_request(self.strategy).name == AUTO


@dataclass(frozen=True)
class RunSection:
    batch: Positive = 8  # items per forward pass and per part file
    resume: bool = True  # true: go on with unfinished results; false: discard them and start again
    seed: int = 0  # of all that is random: what an emulated network loses, which tokens are drawn
    threads: Positive | None = None  # threads per rank. Default SLURM_CPUS_PER_TASK, else 1
    # how long ranks wait for a silent one before all end; "0": for ever (docs/explanation/faults.md)
    watchdog: str = "300s"

    @property
    def watchdog_s(self) -> float:
        try:
            return duration_s(self.watchdog)
        except InputError as exc:
            raise InputError(f"run.watchdog: {exc}") from exc


@dataclass(frozen=True)
class OutputSection:
    path: Path  # required: the HDF5 results; the summary goes beside it as <stem>.json


@dataclass(frozen=True)
class Deck:
    model: ModelSection
    input: InputSection
    task: TaskSection
    parallel: ParallelSection
    run: RunSection
    output: OutputSection

    def as_dict(self) -> dict[str, Any]:
        """All settings with their defaults, as JSON types; `Deck.from_dict` reads it back."""
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return settings

    @classmethod
    def from_dict(cls, settings: Mapping[str, Mapping[str, Any]]) -> Deck:
        return _deck(_given(settings, Path(), "settings"), "settings")


def load_deck(path: str | Path, overrides: Iterable[str] = ()) -> Deck:
    """Read and check a deck.

    overrides: `section.key=value`, values in TOML, or bare words as strings. Relative paths start at the deck's folder
    in the deck, at the current folder in overrides. InputError names the key, the file and the cure.
    """
    return _deck(given_settings(path, Deck, overrides), str(path))


def given_settings(path: str | Path, kind: type, overrides: Iterable[str] = ()) -> dict[tuple[str, str], Given]:
    """What a deck of this `kind`, a dataclass of sections, and overrides of it say: (section, key) -> value."""
    path = Path(path)
    given = _given(read_tables(path, kind.__annotations__), path.absolute().parent, str(path))
    for text in overrides:
        given |= _override(text)
    return given


def _deck(given: Mapping[tuple[str, str], Given], source: str) -> Deck:
    deck: Deck = build(Deck, given, source)
    try:
        deck.parallel.spec  # noqa: B018 - a check
    except InputError as exc:
        named = given.get(("parallel", "strategy"))
        raise InputError(f"{named.origin if named else source}: parallel.strategy: {exc}") from exc
    return deck


def read_tables(path: Path, sections: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The tables of a TOML file; InputError unless it has no others than `sections`."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path}: the deck cannot be read ({exc.strerror}); check the path") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 at byte {exc.start}; a deck is a TOML text file") from exc
    except (ValueError, RecursionError) as exc:  # numbers of thousands of digits, lists in lists in lists
        raise InputError(f"{path}: not valid TOML: {exc}") from exc
    for section, keys in tables.items():
        check_name("section", section, sections, str(path))
        if not isinstance(keys, dict):
            raise InputError(f"{path}: {section} is not a section; write [{section}] with its keys below")
    return tables


def _given(tables: Mapping[str, Mapping[str, Any]], folder: Path, origin: str) -> dict[tuple[str, str], Given]:
    return {(s, k): Given(value, folder, origin) for s, keys in tables.items() for k, value in keys.items()}


def _override(text: str) -> dict[tuple[str, str], Given]:
    name, equals, value_text = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and key):
        raise InputError(f"command line: '{text}' is not of the form section.key=value")
    try:
        value = tomllib.loads(f"value = {value_text}")["value"]
    except (ValueError, RecursionError):
        value = value_text
    return {(section, key): Given(value, Path.cwd(), "command line", value_text)}
