"""The deck of a sweep: TOML -> frozen dataclasses. All sections and keys are on this page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from os.path import normpath
from pathlib import Path
from typing import Any, Literal

from astra_mpi.codec.config import COUNTS, CodecConfig, CodecKind, check_counts
from astra_mpi.config import require
from astra_mpi.decks.deck import read_tables
from astra_mpi.decks.settings import Given, Positive, build
from astra_mpi.errors import InputError
from astra_mpi.network.spec import parse_network
from astra_mpi.network.units import duration_s


@dataclass(frozen=True)
class ModelSection:
    preset: str | None = None  # a named shape of `astra-mpi init`; its models are made if they are missing
    path: Path | None = None  # a model file, instead of a preset
    tokens: tuple[Positive, ...] | None = None  # content tokens of a sequence. Default the model's own
    batch: Positive = 1  # sequences per forward pass
    seed: int = 0  # of a preset's weights and codebooks


@dataclass(frozen=True)
class SweepSection:
    strategies: tuple[str, ...]  # required: specs as `bench --strategies` takes them
    ranks: tuple[Positive, ...]  # required: numbers of ranks
    networks: tuple[str, ...] = ("real",)  # as `bench --network` takes them, such as "10Mbps,rtt=2ms"
    clock: Literal["wall", "virtual"] = "wall"  # virtual: CPU time of each rank plus the emulated network
    # which bytes an emulated network charges (docs/explanation/network.md)
    accounting: Literal["port", "contributed", "paper"] = "port"
    speed: float = 1.0  # virtual clock: a CPU second counts as so many seconds
    counted_keys: bool = True  # far tokens of equal code share one key; the answer is the same
    repeats: Positive = 5  # timed passes of a strategy
    warmup: int = 1  # passes before them that do not count
    seed: int = 0  # of the inputs, and of what is lost
    backend: Literal["numpy", "reference", "cuda"] = "numpy"  # which kernels
    # numpy: type in which products are computed (docs/explanation/compute.md)
    compute: Literal["float32", "bfloat16", "int8", "auto"] = "float32"
    threads: Positive | None = None  # threads per rank. Default SLURM_CPUS_PER_TASK, else 1


@dataclass(frozen=True)
class ThroughSection:
    """Lines instead of the whole grid: a point is measured if at most one axis with a value here differs from it."""

    network: str | None = None  # one of sweep.networks. Default: all of them are crossed with everything
    ranks: Positive | None = None  # one of sweep.ranks; the same
    tokens: Positive | None = None  # one of model.tokens; the same


@dataclass(frozen=True)
class LaunchSection:
    launcher: str = "mpirun -n {ranks}"  # the command that starts the ranks of a point
    limit: str | None = None  # the longest that a point may take, such as "20min". Default none


@dataclass(frozen=True)
class OutputSection:
    path: Path  # required: makes <path>.json, <path>.html and the folder <path>.points


_NOT_OPTIONS = ("codebooks", "vector_bits")


@dataclass(frozen=True)
class CodecSection:
    """Options of `astra-mpi init`, or a codebook file for the model of `model.path`."""

    kind: CodecKind = "residual"  # how a vector becomes codes
    groups: Positive | None = None  # grouped: parts of a vector, each with a codebook. Default 1
    stages: Positive | None = None  # residual: codebooks, each for what those before it leave over. Default 4
    vector_bits: Positive | None = None  # scalar: bits of a vector; with site kv, of keys and of values each
    codebook_size: Positive = 256  # entries of a codebook
    # what is quantised: block input, normalised input, keys and values
    site: Literal["hidden", "normed", "kv"] = "hidden"
    # where the nearest entry is searched: whole width, or a subspace
    encoder: Literal["auto", "exact", "subspace"] = "auto"
    # model.path: a file of `astra-mpi calibrate --codebook-only`, instead of the keys above
    codebooks: Path | None = None

    def options(self) -> list[str]:
        """For the command line of `astra-mpi init`."""
        given = [(f.name.replace("_", "-"), getattr(self, f.name)) for f in fields(self) if f.name not in _NOT_OPTIONS]
        if self.vector_bits is not None:
            given.append(("bits", self.vector_bits * (2 if self.site == "kv" else 1)))
        return [word for name, value in given if value is not None for word in (f"--{name}", str(value))]


@dataclass(frozen=True)
class _Codec:
    codec: CodecSection


@dataclass(frozen=True)
class _Sections:
    model: ModelSection
    sweep: SweepSection
    through: ThroughSection
    launch: LaunchSection
    output: OutputSection


@dataclass(frozen=True)
class SweepDeck:
    model: ModelSection
    sweep: SweepSection
    through: ThroughSection
    launch: LaunchSection
    output: OutputSection
    codecs: Mapping[str, CodecSection]  # by name; at least one

    def beside(self, suffix: str) -> Path:
        """The output with `suffix` after its name."""
        return Path(normpath(self.output.path) + suffix)

    def as_dict(self) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return settings


def load_sweep(path: str | Path) -> SweepDeck:
    """Read and check a deck; relative paths start at its folder. InputError names the key, the file and the cure."""
    path = Path(path)
    tables = read_tables(path, [f.name for f in fields(SweepDeck)])
    folder = path.absolute().parent
    codecs = {name: _codec(name, table, folder, str(path)) for name, table in _codec_tables(tables, str(path))}
    given = {(s, k): Given(value, folder, str(path)) for s, keys in tables.items() for k, value in keys.items()}
    sections: _Sections = build(_Sections, given, str(path))
    own = "own" if sections.model.path else "default"
    deck = SweepDeck(
        **{f.name: getattr(sections, f.name) for f in fields(sections)}, codecs=codecs or {own: CodecSection()}
    )
    try:
        _check(deck, bool(codecs))
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    return deck


def _codec_tables(tables: dict[str, Any], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tables [codecs.NAME], taken out of `tables`."""
    for name, table in tables.pop("codecs", {}).items():
        require(isinstance(table, dict), f"{source}: codecs.{name} is not a table; write [codecs.{name}] with its keys")
        yield name, table


def _codec(name: str, table: Mapping[str, Any], folder: Path, source: str) -> CodecSection:
    where = f"{source}, [codecs.{name}]"
    one: _Codec = build(_Codec, {("codec", key): Given(value, folder, where) for key, value in table.items()}, where)
    codec = one.codec
    counts = {key: value for key in COUNTS if (value := getattr(codec, key)) is not None}
    try:
        check_counts(codec.kind, counts, dashes="", equals=" = ")
        CodecConfig(codec.site, codec.kind, codec.codebook_size, encoder=codec.encoder, **counts)
    except InputError as exc:
        raise InputError(f"{where}: {exc}") from exc
    return codec


def _check(deck: SweepDeck, named: bool) -> None:
    """What no single value shows."""
    model, sweep = deck.model, deck.sweep
    require((model.preset is None) != (model.path is None), "[model] takes either preset or path; give one of them")
    for name, codec in deck.codecs.items() if named else []:
        require(
            (codec.codebooks is not None) == (model.path is not None),
            f"[codecs.{name}]: model.path takes codebooks, a file of `astra-mpi calibrate --codebook-only`;"
            " model.preset takes codec options",
        )
    require(sweep.warmup >= 0 and sweep.seed >= 0 and model.seed >= 0, "warmup and seeds are 0 or more")
    for network in sweep.networks:
        emulated = parse_network(network, sweep.accounting).rate is not None
        require(
            emulated or sweep.clock == "wall" or set(sweep.ranks) == {1},
            f"the virtual clock cannot time the network '{network}'; give one such as 100Mbps,rtt=1ms",
        )
    axes = (("network", sweep.networks), ("ranks", sweep.ranks), ("tokens", model.tokens or ()))
    for name, values in axes:
        wanted = getattr(deck.through, name)
        require(wanted in (None, *values), f"through.{name} = {wanted!r} is not among those of the sweep")
    _check_launch(deck.launch)


def _check_launch(launch: LaunchSection) -> None:
    try:
        words = shlex.split(launch.launcher.format(ranks=1))
        right = launch.launcher.format(ranks=1) != launch.launcher.format(ranks=2) and bool(words)
    except (ValueError, LookupError, AttributeError):
        right = False
    require(right, f"launch.launcher = '{launch.launcher}' does not fit; give a command such as mpirun -n {{ranks}}")
    if launch.limit is not None:
        require(duration_s(launch.limit) > 0, "launch.limit must be above 0")
