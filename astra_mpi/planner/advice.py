"""A plan in words: what to use, what it gains, from which bandwidth on. Judged under port accounting."""

from __future__ import annotations

from typing import Any

from astra_mpi.codec.config import KINDS, CodecConfig
from astra_mpi.codec.counts import as_text

#: a gain smaller than this is not worth a second machine
WORTH = 1.05


def advice(plan: dict[str, Any]) -> list[str]:
    """Sentences; `plan` as `planner.plan` gives it, with "size"."""
    single_ms = 1e3 * plan["single_s"]
    others = _worth_it([row for row in plan["strategies"] if _eligible(row)])
    if not others:
        return [f"Stay on one rank: nothing else can be used here; it takes {single_ms:.1f} ms."]
    best = min(others, key=_port_s)
    if plan["single_s"] < WORTH * _port_s(best):
        return [_stay(plan, best)]
    sentences = [
        f"Use {best['strategy']}: {1e3 * _port_s(best):.1f} ms against {single_ms:.1f} ms on one rank"
        f" ({best['speedup']['port']:.2f}x), of which {1e3 * best['wait_s']['port']:.1f} ms waits for the network.",
        f"It beats one rank {above(best['break_even_bps']['port'])}.",
    ]
    if best["halves"]:
        sentences.append("The batch goes through as two halves in turns, one of which computes while the other waits.")
    if max(best["cut"]) - min(best["cut"]) > 1:
        why = "Later tokens see more" if plan["weights"] == "causal" else "Ranks are uneven"
        sentences.append(f"{why}: cut by --weights {plan['weights']}, about {'/'.join(map(str, best['cut']))} tokens.")
    if best["strategy"] == "astra":
        sentences += _nearer(others)
    if best["strategy"] == "astra:late":
        sentences.append(
            "Its codes are a block late; measure what that costs on your data: docs/explanation/waiting.md has figures."
        )
    if not best["exact"]:
        sentences.append(_exact(others))
    return sentences


def above(bandwidth_bps: float | None) -> str:
    """A break-even bandwidth in words."""
    if bandwidth_bps is None:
        return "at no bandwidth"
    return f"above {bandwidth_bps / 1e6:.3g} Mbps" if bandwidth_bps else "at any bandwidth"


def _eligible(row: dict[str, Any]) -> bool:
    """`bp` computes another model: it is shown, never advised."""
    return "skipped" not in row and row["strategy"].split(":")[0] not in ("single", "bp")


def _worth_it(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without late codes, which are less accurate, unless they gain enough over those that are waited for."""
    fresh = min((_port_s(row) for row in rows if row["strategy"] == "astra"), default=float("inf"))
    return [row for row in rows if row["strategy"] != "astra:late" or WORTH * _port_s(row) <= fresh]


def _port_s(row: dict[str, Any]) -> float:
    return float(row["latency_s"]["port"])


def _stay(plan: dict[str, Any], best: dict[str, Any]) -> str:
    return (
        f"Stay on one rank (rank {plan['single_rank']}, {1e3 * plan['single_s']:.1f} ms): the fastest alternative,"
        f" {best['strategy']}, takes {1e3 * _port_s(best):.1f} ms; it beats one rank"
        f" {above(best['break_even_bps']['port'])}."
    )


def _nearer(others: list[dict[str, Any]]) -> list[str]:
    return [
        f"astra:inputs is nearer to exact, since its first block needs no codes, and takes {1e3 * _port_s(row):.1f} ms."
        for row in others
        if row["strategy"] == "astra:inputs"
    ]


def _exact(others: list[dict[str, Any]]) -> str:
    exact = [row for row in others if row["exact"]]
    if not exact:
        return "It is approximate, and no exact strategy can be used here."
    best = min(exact, key=_port_s)
    return (
        f"It is approximate; the fastest exact one, {best['strategy']}, takes {1e3 * _port_s(best):.1f} ms"
        f" ({best['speedup']['port']:.2f}x) and beats one rank {above(best['break_even_bps']['port'])}."
    )


def codec_name(codec: dict[str, Any]) -> str:
    """residual M=4 K=256 hidden."""
    label, predicted = KINDS[codec["kind"]].label(codec), "predicted" * ("predict" in codec)
    near = f"near +{codec['near_stages']}" if "near" in codec else ""
    return " ".join(filter(None, [codec["kind"], label, f"K={codec['codebook_size']}", codec["site"], predicted, near]))


def codec_advice(codecs: list[dict[str, Any]], budget_bits: float | None, on: str) -> str:
    """The most accurate of the codecs measured `on` some task, within a budget; rows of `planner.compare_codecs`."""
    best = next(row for row in codecs if row["best"])
    codec, bits = best["codec"], best["bits_per_token_per_block"]
    where = "Of the codecs measured" if budget_bits is None else f"Within {budget_bits:g} bits"
    return (
        f"{where}, {codec_name(codec)} ({bits:.4g} bits per token and block) is the most accurate on {on}"
        f" ({best['measured']}; {1e3 * best['latency_s']:.1f} ms): calibrate {best['calibrate']}."
    )


def calibrate_options(codec: CodecConfig, fit: str = "") -> str:
    """Options that make such codes; fit: those that the codec does not say."""
    count = codec.rule.count
    told = {"site": codec.site, "kind": codec.kind}
    if count == "vector_bits":
        told["bits"] = f"{codec.bits_per_token:.0f}"
    elif count:
        told[count] = as_text(getattr(codec, count))
    told["codebook-size"] = f"{codec.codebook_size}"
    if codec.predicts:
        told |= {"predict": codec.predict, "predict-inputs": f"{codec.inputs}"}
    return " ".join([*(f"--{name} {value}" for name, value in told.items()), fit]).rstrip()
