"""What the planner is told: the outline of a model file, the profile of `doctor`, options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import h5py
import numpy as np

from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require
from astra_mpi.costs.latency import ASSUMED_GFLOPS, Network, Speeds, assumed_speeds
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.types import assumed, kept_bytes, stored, weight_bytes
from astra_mpi.costs.wires import Coding
from astra_mpi.errors import InputError
from astra_mpi.files import hdf5
from astra_mpi.files.codecfile import DTYPES, read_settings
from astra_mpi.files.modelfile import read_config
from astra_mpi.files.weightfile import stored_dtype
from astra_mpi.models import FAMILIES
from astra_mpi.network.units import bandwidth_bps, duration_s
from astra_mpi.planner.measured import best_codec, measured, same_codes
from astra_mpi.planner.plan import cheaper_remote

DEFAULT_RTT_S = 1e-3


def read_outline(path: str, codebooks: str | None = None) -> tuple[Any, Coding | None]:
    """A model file's config, and its codec (or a codebook file's) with the widths searched; entries are not read."""
    with hdf5.reading(path) as file:
        config, _ = read_config(file)
        if codebooks is None:
            return config, _coding(file) if "codec" in file else None
    with hdf5.reading(codebooks) as file:
        hdf5.check_format(file, hdf5.CODEBOOKS)
        return config, _coding(file)


def read_storage(path: str) -> str:
    """What most numbers of a model file's matrices are stored as."""
    with hdf5.reading(path) as file:
        sizes: dict[str, int] = {}
        for item in hdf5.group(file, "weights").values():
            if isinstance(item, h5py.Dataset) and item.ndim > 1:
                sizes[stored_dtype(item)] = sizes.get(stored_dtype(item), 0) + item.size
        return max(sizes, key=lambda kind: sizes[kind], default="float32")


def _coding(file: Any) -> Coding:
    group = hdf5.group(file, "codec")
    codec = read_settings(group)
    widths: list[int | None] = []
    ranks: list[int] = []
    names = ("keys_subspace", "values_subspace") if codec.site == "kv" else ("subspace",)
    for i in range(int(codec.has_maps), len(group)):
        block = hdf5.group(group, str(i))
        if codec.has_maps:
            ranks.append(int(hdf5.dataset(block, "predictor", DTYPES).shape[1]))
        bases = [hdf5.dataset(block, name, ("float32",)) if name in block else None for name in names]
        widths += [None if basis is None else int(basis.shape[1]) for basis in bases]
    return Coding(codec, tuple(widths) or (None,), rank=sum(ranks) / len(ranks) if ranks else None)


#: beyond these a plan says nothing
MOST_RANKS, MOST_GFLOPS = 4096, 1e7


class Profile(NamedTuple):
    """What `doctor` measured: of the ranks, in order, and of the links between them."""

    speeds: tuple[Speeds, ...]  # with products in the type that was asked for
    rtt_s: np.ndarray  # (P, P), NaN on the diagonal
    bandwidth_bps: np.ndarray  # (P, P)

    def of_ranks(self, size: int) -> tuple[tuple[Speeds, ...], Network | None]:
        """Speeds of the first `size` ranks, those beyond as slow as the slowest, and the worst link among them."""
        speeds = self.speeds[:size]
        slowest = min(self.speeds, key=lambda speed: speed.gemm)
        speeds += (slowest,) * (size - len(speeds))
        known = slice(None, max(size, 2))
        rate, trip = self.bandwidth_bps[known, known], self.rtt_s[known, known]
        if rate.size < 4:
            return speeds, None
        return speeds, Network(float(np.nanmin(rate)), float(np.nanmax(trip)))


def read_profile(path: str, compute: str = "float32") -> Profile:
    """The JSON of `astra-mpi doctor --json`; InputError on any other file, and where it has no speeds of `compute`."""
    cure = "write one with `mpirun -n P astra-mpi doctor --json FILE`"
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        ranks = report["ranks"]
        if compute != "float32":
            told = all(compute in rank.get("compute", {}) for rank in ranks)
            require(told, f"{path} has no speeds of {compute}, because an earlier version wrote it; {cure}")
            ranks = [rank["compute"][compute] for rank in ranks]
        known = [{k: float(v) for k, v in rank["speeds"].items() if v is not None} for rank in ranks]
        speeds = tuple(Speeds(**of_rank) for of_rank in known)
        links = [np.array(report["links"][name], dtype=np.float64) for name in ("rtt_s", "bandwidth_bps")]
    except OSError as exc:
        raise InputError(f"{path}: the profile cannot be read ({exc.strerror}); {cure}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as exc:
        raise InputError(f"{path} is no profile of doctor ({type(exc).__name__}: {exc}); {cure}") from exc
    given = (value for speed in speeds for value in dataclasses.astuple(speed) if value is not None)
    positive = all(0 < value < np.inf for value in given)
    shapes = all(link.shape == (len(speeds), len(speeds)) for link in links)
    off = ~np.eye(len(speeds), dtype=bool)
    require(
        bool(speeds) and positive and shapes and all(bool((link[off] > 0).all()) for link in links),
        f"{path}: a speed or link of the profile is missing or not above zero; {cure}",
    )
    return Profile(speeds, *links)


def rank_speeds(
    size: int,
    gflops: float | None,
    profile: Profile | None,
    factors: Sequence[float] | None,
    compute: str = "float32",
    storage: str = "float32",
) -> Any:
    """-> (speeds (P,), where they are from). InputError on options that do not go together.

    gflops: of float32 GEMM; how much faster another type is, is assumed.
    """
    require(gflops is None or profile is None, "--speed and --profile both say how fast ranks are; give one of them")
    sane = gflops is None or 0 < gflops <= MOST_GFLOPS
    require(sane, f"--speed {gflops} is not between 0 and {MOST_GFLOPS:g}; give GFLOP/s of float32 GEMM")
    require(
        factors is None or len(factors) == size, f"--speeds-of-ranks has {len(factors or ())} numbers for {size} ranks"
    )
    require(all(0 < x < np.inf for x in factors or ()), "--speeds-of-ranks: numbers above zero, such as 1,1,0.5")
    if profile is not None:
        speeds, source = profile.of_ranks(size)[0], "measured by doctor"
    else:
        speeds = (assumed(assumed_speeds(gflops or ASSUMED_GFLOPS), compute),) * size
        source = f"{'given' if gflops else 'assumed'}: {gflops or ASSUMED_GFLOPS:g} GFLOP/s of GEMM per rank"
    if compute != "float32":
        source += f", products in {compute}"
        if profile is None:
            over = speeds[0].gemm / assumed_speeds(gflops or ASSUMED_GFLOPS).gemm
            source += f", {over:g} times as fast as float32 (assumed of a CPU with instructions for it)"
    speeds = tuple(stored(speed, compute, storage) for speed in speeds)
    return tuple(speed.times(x) for speed, x in zip(speeds, factors or [1.0] * size, strict=True)), source


def default_tokens(config: Any) -> int:
    """Content tokens that `bench` takes, too: all patches of an image, up to 128 of a text."""
    if config.family == "vit":
        return int(config.grid[0] * config.grid[1])
    return int(min(128, getattr(config, "max_positions", 128)))


def make_setting(
    config: Any,
    own: Coding | None,
    *,
    ranks: int | None = None,
    bandwidth: str | None = None,
    rtt: str | None = None,
    profile: Profile | None = None,
    speed: float | None = None,
    factors: Sequence[float] | None = None,
    tokens: int | None = None,
    batch: int = 1,
    budget_bits: float | None = None,
    distinct: int | None = None,
    compute: str = "float32",
    storage: str = "float32",
) -> tuple[Setting, str]:
    """Options of `plan` -> (setting, where the speeds are from). InputError, naming the option, on what does not fit.

    compute: type of products, of the profile too; storage: of the weights. The codec: the most accurate one within
    `budget_bits` (`measured.py`), or the model's own, or the default.
    """
    require(ranks is not None or profile is not None, "-n is missing: give the number of ranks, or a --profile")
    size = len(profile.speeds) if ranks is None and profile else ranks or 0
    tokens = default_tokens(config) if tokens is None else tokens
    for option, value in (("-n", size), ("--tokens", tokens), ("--batch", batch), ("--distinct-keys", distinct or 1)):
        require(value >= 1, f"{option} {value}: at least 1")
    require(size <= MOST_RANKS, f"-n {size}: at most {MOST_RANKS}")
    positions = getattr(config, "max_positions", tokens)
    require(tokens <= positions, f"--tokens {tokens}: the model has {positions} positions")
    speeds, source = rank_speeds(size, speed, profile, factors, compute, storage)
    link = profile.of_ranks(size)[1] if profile else None
    require(
        bandwidth is not None or link is not None or size == 1,
        "--bandwidth is missing: give one such as 10Mbps, or a --profile of several ranks",
    )
    network = Network(
        bandwidth_bps(bandwidth) if bandwidth else link.bandwidth_bps if link else 1e9,
        duration_s(rtt) if rtt else link.rtt_s if link else DEFAULT_RTT_S,
    )
    coding = _within(budget_bits, own, config)
    require(
        distinct is None or (coding.codec.codes_per_token == 1 and coding.codec.site != "kv"),
        "--distinct-keys is for codecs with one code per token (G = 1 or M = 1) at hidden or normed",
    )
    kept = weight_bytes(storage, compute), kept_bytes(compute, config.d_head)
    setting = Setting(config, tokens, speeds, network, batch, replace(coding, distinct=distinct), *kept)
    return replace(setting, coding=cheaper_remote(setting, setting.coding)), source


def _within(budget_bits: float | None, own: Coding | None, config: Any) -> Coding:
    if budget_bits is None:
        return own or Coding(CodecConfig(site=FAMILIES[config.family].default_site))
    known = measured(config.family, config.n_layers).codecs
    best = best_codec(budget_bits, known)
    least = min(codec.bits_per_token for codec in known)
    if best is None:
        raise InputError(f"--budget {budget_bits:g}: the smallest codec that was measured takes {least} bits")
    return own if own is not None and same_codes(own.codec, best) else Coding(best)
