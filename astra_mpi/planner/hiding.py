"""The most accurate wire whose messages hide behind what ranks compute (docs/explanation/planner.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from astra_mpi.costs.latency import break_even_bps, latency
from astra_mpi.costs.setting import Setting
from astra_mpi.costs.strategies import STRATEGIES, sp_bits
from astra_mpi.costs.wires import Coding
from astra_mpi.planner.advice import calibrate_options, codec_name
from astra_mpi.planner.measured import measured, same_codes
from astra_mpi.planner.plan import best_cut, cheaper_remote

#: share of a pass that may wait for messages that count as hidden: nothing hides the first ones
OPEN = 0.05
#: of a link that nothing waits for
_QUICK_BPS = 1e15
_EXACT = ("sp:kv", "sp")


class _Wire(NamedTuple):
    """How far tokens travel."""

    strategy: str
    bits: float  # per token and block
    told: str  # how accurate it is, in words
    loss: float  # on so many ranks, or as many as were measured; least where nothing is lost
    coding: Coding | None = None  # of codes
    fit: str = ""  # options of `calibrate` that the codec does not say


def wires(setting: Setting) -> list[dict[str, Any]]:
    """Exact and measured wires, most accurate first and each of fewer bits than those before it, as JSON types; one is
    `named`. None for one rank."""
    known = list(_known(setting)) if setting.size > 1 else []
    best = [one for one in known if not any(_beats(other, one) for other in known)]
    rows = [_row(setting, wire) for wire in sorted(best, key=lambda wire: -wire.bits)]
    named = _named(rows) if rows else None
    for row in rows:
        row["named"] = row is named
    return rows


def _beats(one: _Wire, other: _Wire) -> bool:
    """Whether it is at least as small and accurate, and either is better."""
    return one.bits <= other.bits and one.loss <= other.loss and (one.bits < other.bits or one.loss < other.loss)


def _known(setting: Setting) -> Iterator[_Wire]:
    about, config = measured(setting.config.family, setting.config.n_layers), setting.config
    for name in _EXACT:
        yield _Wire(name, sp_bits(setting.shape, name), "exact", -float("inf"))
    for figure in about.rounded:
        told, loss = about.told(figure, setting.size) or "", about.loss(figure, setting.size)
        yield _Wire(figure.strategy, sp_bits(setting.shape, figure.strategy), told, loss)
    for of in about.figures:
        own = same_codes(of.codec, setting.coding.codec)
        coding = setting.coding if own else cheaper_remote(setting, of.coding(config.d_model))
        bits = of.codec.mean_bits(config.n_layers)
        told, loss = about.told(of, setting.size) or "", about.loss(of, setting.size)
        yield _Wire("astra", bits, told, loss, coding, of.fit)


def _row(setting: Setting, wire: _Wire) -> dict[str, Any]:
    """On the cut that is best where links cost nothing, so that bandwidth alone decides what hides."""
    with_codes = setting if wire.coding is None else replace(setting, coding=wire.coding)
    quick = replace(with_codes, network=setting.network._replace(bandwidth_bps=_QUICK_BPS))
    cost = STRATEGIES[wire.strategy](setting.job(best_cut(quick, wire.strategy)), with_codes.coding)
    took = latency(cost, setting.speeds, setting.network)
    needed = break_even_bps(cost, setting.speeds, setting.network.rtt_s, "port", took.compute / (1 - OPEN))
    codec = None if wire.coding is None else wire.coding.codec.as_dict()
    return {
        "strategy": wire.strategy,
        "codec": codec,
        "calibrate": None if wire.coding is None else calibrate_options(wire.coding.codec, wire.fit),
        "bits_per_token_per_block": wire.bits,
        "measured": wire.told,
        "latency_s": took.total,
        "wait_s": took.wait,
        "hides_above_bps": needed,
        "hides": needed is not None and setting.network.bandwidth_bps >= needed,
    }


def _named(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The most accurate that hides; where none does, the one that would at the least bandwidth, or is smallest."""

    def needs(row: dict[str, Any]) -> tuple[float, float]:
        needed = row["hides_above_bps"]
        return float("inf") if needed is None else needed, row["bits_per_token_per_block"]

    return next((row for row in rows if row["hides"]), None) or min(rows, key=needs)


def wire_name(row: dict[str, Any]) -> str:
    return row["strategy"] if row["codec"] is None else codec_name(row["codec"])


def hiding_advice(rows: Sequence[dict[str, Any]], bandwidth_bps: float) -> list[str]:
    """The named one of `wires`, in words, and how to have it."""
    return [_sentence(row, bandwidth_bps) for row in rows if row["named"]]


def _sentence(row: dict[str, Any], bandwidth_bps: float) -> str:
    found = "the most accurate wire that hides" if row["hides"] else "no wire hides"
    link = "is" if row["hides"] else "; the nearest is"
    use = f"Calibrate {row['calibrate']}, and use strategy astra" if row["calibrate"] else f"Use {row['strategy']}"
    bits = round(row["bits_per_token_per_block"], 1)
    return (
        f"At {bandwidth_bps / 1e6:g} Mbps {found} behind the compute{' ' * row['hides']}{link} {wire_name(row)}"
        f" ({bits} bits per token and block; {row['measured']}): {1e3 * row['latency_s']:.1f} ms, of which"
        f" {1e3 * row['wait_s']:.1f} ms waits. {use}."
    )
