"""The input deck: a TOML file of settings -> frozen dataclasses. All sections and keys are on this page."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from astra_mpi.config import require
from astra_mpi.decks.settings import Given, Positive, build, check_name
from astra_mpi.errors import InputError
from astra_mpi.network.units import duration_s


@dataclass(frozen=True)
class ModelSection:
    path: Path  # required: the model file
    codebooks: Path | None = None  # default none: a codebook file, instead of the codebooks in the model file


@dataclass(frozen=True)
class InputSection:
    path: Path  # required: .txt .jsonl .tsv (text), .npy .npz .h5 (tokens, images), a folder of PNG and JPEG (images)
    kind: Literal["images", "text", "tokens"]  # required: what the file holds
    # default "text" for text, else `kind`: HDF5 dataset, .npz key, JSONL field, TSV column or columns (each an item)
    dataset: str | tuple[str, ...] | None = None
    # default none: name of the integer classes in the same file; for a folder, of a file in it, lines NAME<TAB>CLASS
    labels: str | None = None
    mask: str | None = None  # default none: dataset (N, T) of a tokens file, 0 = leave the token out
    # default the model's own: longer items are cut to this; generate: default none, longer prompts are errors
    max_tokens: Positive | None = None
    pair: str | None = None  # classify, rerank: field of the second texts; default "text_pair", where an item has one
    whole: bool = False  # a .txt file is one item, line breaks included, instead of one per line
    # default all items: "I/N", or "array/N" in a SLURM job array; output.path gets the shard's number
    # (docs/reference/inputs.md)
    shard: str | None = None
    shard_by: Literal["contiguous", "strided"] = "contiguous"  # a shard's items: side by side, or every N-th


@dataclass(frozen=True)
class TaskSection:
    # required: class logits, scores of pairs and their order, one vector per item, how well a text is predicted, or
    # what follows a prompt
    name: Literal["classify", "rerank", "embed", "perplexity", "generate"]
    # default the model's own: from tokens to one vector; it takes the classifier off a classifier of texts
    pooling: Literal["mean", "cls", "pooler"] | None = None
    normalize: bool | None = None  # default the model's own: scale vectors to length 1
    # embed: default the model's own, if it has a default one: name of what is put before every text; false: nothing
    prompt: bool | str | None = None
    # perplexity: default half of input.max_tokens: windows of so many tokens begin that far apart
    stride: Positive | None = None
    # generate (docs/reference/generate.md)
    max_new_tokens: Positive | None = None  # required: so many tokens follow a prompt at most
    temperature: float = 0.0  # 0: the most likely token; above: one is drawn, from logits divided by it
    top_k: Positive | None = None  # default all: draw from so many of the most likely ones
    top_p: float | None = None  # default all: and of them from the most likely ones of together this probability
    # default none: tokens after which a sequence ends, ids or strings that are one token, beside the model's own
    stop: int | str | tuple[int | str, ...] | None = None
    ignore_end: bool = False  # go on after the model's own end tokens
    # one rank goes on with a sequence, or all keep their keys and merge; auto: local, or on an emulated network what is
    # predicted to be faster
    decode: Literal["auto", "local", "merged"] = "auto"
    stream: bool | None = None  # default where stderr is a terminal and run.batch = 1: print the text as it comes


@dataclass(frozen=True)
class ParallelSection:
    # what ranks own and exchange: single, sp, tp, segment_means or astra; options may follow, as in "sp:kv:int8". auto:
    # astra with codebooks, else the exact strategy that is predicted to be fastest here (docs/explanation/planner.md)
    strategy: str = "auto"
    # the cut: "even", or by speeds so that the ranks finish together: "auto" measures them, "causal" (decoders) takes
    # them as equal, or one relative speed per rank
    weights: Literal["even", "auto", "causal"] | tuple[float, ...] = "even"
    backend: Literal["numpy", "reference", "cuda"] = "numpy"  # which kernels
    transport: Literal["host", "cuda-aware"] = "host"  # backend cuda: MPI sees host memory, or the GPU's
    precision: Literal["float32", "tf32", "float16"] = "float32"  # backend cuda
    counted_keys: bool = True  # remote tokens of equal code share a key (exact)
    remote: Literal["auto", "table", "gemm"] = "auto"  # remote keys from projected codebooks or by GEMM; auto is timed
    gather: Literal["x", "kv"] | None = None  # default "x": what sp sends, block inputs or keys and values
    wire: Literal["float32", "float16", "int8"] | None = None  # default "float32": how sp sends it
    ratio: Positive | None = None  # default 8: tokens per mean that segment_means sends
    # default "codes": how astra's first block sees far tokens; "inputs": exactly, from the inputs, without an exchange
    first: Literal["codes", "inputs"] | None = None
    network: str = "real"  # or one to emulate, such as "10Mbps,rtt=2ms,loss=1%" (docs/explanation/network.md)
    accounting: Literal["port", "contributed", "paper"] = "port"  # which bytes the emulated network charges
    clock: Literal["wall", "virtual"] = "wall"  # virtual: CPU time plus the emulated network
    speed: float | tuple[float, ...] = 1.0  # virtual CPU seconds per real one, for all ranks or one per rank
    deadline: str | None = None  # default none: such as "5ms", how long astra waits at an exchange
    missing: Literal["drop", "mean"] = "drop"  # what becomes of codes that do not come

    @property
    def spec(self) -> str:
        """`strategy` with the keys beside it, as one word. InputError on what does not exist or gives no answers."""
        from astra_mpi.strategies import AUTO, STRATEGIES, parse_request  # MPI starts with them; others need none

        spec = parse_request(self.strategy, gather=self.gather, wire=self.wire, ratio=self.ratio, first=self.first)
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
    resume: bool = True  # go on with unfinished results; false: discard them and start anew
    seed: int = 0  # of what the emulated network loses at random, and of drawn tokens
    threads: Positive | None = None  # default SLURM_CPUS_PER_TASK, else 1: threads per rank
    # how long ranks wait for a silent one before all end (docs/explanation/faults.md); "0": for ever
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
