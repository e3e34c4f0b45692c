"""astra-mpi plan: predicted latency of every strategy, break-even bandwidths, and what to use."""

from __future__ import annotations

import argparse
from typing import Any

from astra_mpi.commands.model_options import _numbers, add_compute_option, write_json


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="which strategy would be fastest",
        description="Predicts the latency of every strategy from counted operations and bytes, measured or assumed"
        " speeds, and a link; no MPI needed. docs/explanation/planner.md has the model and its limits.",
    )
    parser.add_argument("model", help="model file")
    parser.add_argument("-n", "--ranks", type=int, metavar="P", help="default: those of the profile")
    parser.add_argument("--bandwidth", metavar="B", help="of a port, such as 10Mbps (default: the profile's worst)")
    parser.add_argument("--rtt", metavar="T", help="round trip, such as 2ms (default: the profile's worst, else 1ms)")
    parser.add_argument("--profile", metavar="FILE", help="what `astra-mpi doctor --json FILE` measured")
    parser.add_argument("--speed", type=float, metavar="GFLOPS", help="float32 GEMM of a rank (default 50)")
    parser.add_argument(
        "--speeds-of-ranks", type=_numbers, metavar="S,..", help="relative speeds, one per rank, such as 1,1,0.5"
    )
    add_compute_option(parser, auto="")
    parser.add_argument("--tokens", type=int, metavar="T", help="content tokens of a sequence (default: as bench)")
    parser.add_argument("--batch", type=int, default=1, metavar="B", help="sequences (default %(default)s)")
    parser.add_argument("--budget", type=float, metavar="BITS", help="most bits per token and block for the codec")
    parser.add_argument("--codebooks", metavar="FILE", help="codebook file, instead of the codebooks in the model")
    parser.add_argument(
        "--distinct-keys", type=int, metavar="U", help="distinct far codes, as bench prints them: counted keys are on"
    )
    parser.add_argument(
        "--new-tokens", type=int, metavar="N", help="also what N tokens after a prompt of --tokens cost (decoders)"
    )
    parser.add_argument(
        "--draft-acceptance",
        type=float,
        metavar="A",
        help="with --new-tokens: also with drafts, each right with this probability where those before it are",
    )
    parser.add_argument(
        "--objective",
        metavar="WHAT",
        help="also every grid of the ranks, best first by latency (one input, now) or throughput (a job of many)",
    )
    parser.add_argument(
        "--memory", metavar="GB,..", help="of each rank, such as 8GB, or 4GB,8GB,8GB,8GB: what does not fit is named"
    )
    parser.add_argument(
        "--handed-on", default="float16", metavar="TYPE", help="between stages: float32, float16 (default), int8"
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON; - for stdout")
    parser.add_argument(
        "--plot",
        metavar="PATH",
        help="draw predicted latency over bandwidth, with --new-tokens that of a new token (.png, .svg, .pdf)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from astra_mpi.config import require
    from astra_mpi.planner.advice import advice, codec_advice
    from astra_mpi.planner.decode import decode_advice, decode_plan
    from astra_mpi.planner.hiding import hiding_advice, wires
    from astra_mpi.planner.measured import measured
    from astra_mpi.planner.plan import compare_codecs, plan
    from astra_mpi.planner.waiting import fewer_waits, waiting_advice

    drafted = args.draft_acceptance is None or args.new_tokens is not None
    require(drafted, "--draft-acceptance is for --new-tokens; give it too")
    if args.plot:
        from astra_mpi.planner.curves import draw, draw_decode, require_matplotlib

        require_matplotlib()
    setting, source = _setting(args)
    answer: dict[str, Any] = {
        "model": args.model,
        "ranks": setting.size,
        "tokens": setting.tokens,
        "batch": setting.batch,
        "network": setting.network._asdict(),
        "speeds": source,
        "compute": args.compute,
        "codec": setting.coding.codec.as_dict(),
        "remote": setting.coding.remote,
        "distinct_keys": setting.coding.distinct,
        **plan(setting),
        "codecs": compare_codecs(setting, args.budget),
        "measured_on": measured(setting.config.family, setting.config.n_layers).on,
        "wires": wires(setting),
        "fewer_waits": fewer_waits(setting),
    }
    answer["verdict"] = [
        *advice(answer),
        *waiting_advice(answer["fewer_waits"], answer["strategies"]),
        *hiding_advice(answer["wires"], setting.network.bandwidth_bps),
        codec_advice(answer["codecs"], args.budget, answer["measured_on"]),
    ]
    if args.new_tokens is not None:
        answer["decode"] = decode_plan(setting, args.new_tokens, args.draft_acceptance)
        answer["verdict"] += decode_advice(answer["decode"])
    if args.objective or args.memory:
        from astra_mpi.planner.grid_plan import grid_advice, grid_plan

        answer["grids"] = grid_plan(setting, args.objective or "latency", _memory(args.memory), args.handed_on)
        answer["verdict"] += grid_advice(answer["grids"], setting.size)
    if args.json != "-":
        print(_table(answer))
    if args.json:
        write_json(args.json, answer)
    if args.plot:
        title = f"{setting.size} ranks, {setting.batch} x {setting.tokens} tokens"
        if args.new_tokens is None:
            draw(args.plot, setting, title)
        else:
            draw_decode(args.plot, setting, args.new_tokens, f"{title}, {args.new_tokens} new ones")
    return 0


def _setting(args: argparse.Namespace) -> Any:
    from astra_mpi.config import require
    from astra_mpi.costs.types import COMPUTES
    from astra_mpi.planner.inputs import make_setting, read_outline, read_profile, read_storage

    require(args.compute in COMPUTES, f"--compute {args.compute}: plan takes one of {', '.join(COMPUTES)}")
    config, own = read_outline(args.model, args.codebooks)
    return make_setting(
        config,
        own,
        ranks=args.ranks,
        bandwidth=args.bandwidth,
        rtt=args.rtt,
        profile=read_profile(args.profile, args.compute) if args.profile else None,
        speed=args.speed,
        factors=args.speeds_of_ranks,
        tokens=args.tokens,
        batch=args.batch,
        budget_bits=args.budget,
        distinct=args.distinct_keys,
        compute=args.compute,
        storage=read_storage(args.model),
    )


def _memory(text: str | None) -> list[float] | None:
    """Bytes of each rank, or of all alike. InputError names the option."""
    from astra_mpi.config import require
    from astra_mpi.network.units import memory_bytes

    require(text is None or bool(text), "--memory is empty; give one such as 8GB")
    return None if text is None else [memory_bytes(part) for part in text.split(",")]


def _table(answer: dict[str, Any]) -> str:
    network = answer["network"]
    lines = [
        f"{answer['model']} on {answer['ranks']} ranks, {answer['batch']} x {answer['tokens']} tokens, ports of"
        f" {network['bandwidth_bps'] / 1e6:g} Mbps, round trip {1e3 * network['rtt_s']:g} ms",
        f"speeds {answer['speeds']}; predicted, not measured; milliseconds per forward pass",
        "",
        f"{'':<17}{'-- latency by accounting --':^30}{'':>25}{'-- beats one rank above --':^30}",
        f"{'strategy':<17}{'contributed':>12}{'port':>9}{'paper':>9}{'wait':>9}{'speed-up':>9}{'exact':>7}"
        f"{'contributed':>12}{'port':>9}{'paper':>9}{'sent kB':>10}{'MiB a rank':>11}",
    ]
    lines += [_row(row) for row in answer["strategies"]]
    on = f"  on {answer['measured_on']}"
    lines += ["", f"{'codecs of astra, most accurate first':<39}{'bits':>6}{'port ms':>9}{on}"]
    lines += [_codec(row) for row in answer["codecs"]]
    if answer["wires"]:
        lines += ["", f"{'wires, most accurate first':<39}{'bits':>6}{'port ms':>9}{'hides above Mbps':>18}"]
        lines += [_wire(row) for row in answer["wires"]]
    if "decode" in answer:
        lines += ["", *_decode(answer["decode"])]
    if "grids" in answer:
        lines += ["", *_grids(answer["grids"])]
    return "\n".join([*lines, "", *answer["verdict"]])


def _grids(plan: dict[str, Any]) -> list[str]:
    """The best grids, one line each, of each grid and strategy the best codec, and those that do not fit."""
    from astra_mpi.planner.grid_plan import SHOWN

    lines = [
        f"grids by {plan['objective']}, activations between stages as {plan['handed_on']}",
        f"{'grid':<10}{'strategy':<17}{'bits':>6}{'one ms':>10}{'job 1/s':>10}{'exact':>7}{'GB a rank':>11}  blocks",
    ]
    for row in plan["grids"][:SHOWN]:
        bits = "-" if row["bits_per_token_per_block"] is None else f"{row['bits_per_token_per_block']:.4g}"
        blocks = "all" if row["blocks"] is None else "/".join(map(str, row["blocks"]))
        lines.append(
            f"{row['grid']:<10}{row['strategy']:<17}{bits:>6}{1e3 * row['latency_s']:>10.1f}"
            f"{row['sequences_per_s']:>10.3g}{'yes' if row['exact'] else 'no':>7}"
            f"{max(row['memory_bytes']) / 1e9:>11.3g}  {blocks}"
        )
    return lines + [f"{row['grid']:<10}does not fit: {row['why']}" for row in plan["misfits"]]


def _row(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['strategy']:<17}skipped: {row['skipped']}"
    seconds, needed = row["latency_s"], row["break_even_bps"]
    kinds = ("contributed", "port", "paper")
    return (
        f"{row['strategy']:<17}"
        + "".join(f"{1e3 * seconds[kind]:>{12 if kind == 'contributed' else 9}.1f}" for kind in kinds)
        + f"{1e3 * row['wait_s']['port']:>9.1f}{row['speedup']['port']:>8.2f}x{'yes' if row['exact'] else 'no':>7}"
        + "".join(f"{_mbps(row, needed[kind]):>{12 if kind == 'contributed' else 9}}" for kind in kinds)
        + f"{sum(row['contributed_bytes']) / 1e3:>10.1f}{row['memory_bytes'] / 2**20:>11.0f}"
        + ("  in halves" if row["halves"] else "")
    )


def _mbps(row: dict[str, Any], bandwidth_bps: float | None) -> str:
    if row["strategy"] == "single":
        return "-"
    return "never" if bandwidth_bps is None else f"{bandwidth_bps / 1e6:.3g}"


def _codec(row: dict[str, Any]) -> str:
    from astra_mpi.planner.advice import codec_name

    told = [] if row["measured"] is None else ["about " * (row["accuracy_rank"] is None) + row["measured"]]
    marks = [*told, *(name for name in ("used", "best") if row[name])]
    marks += ["beyond the budget"] if not row["fits"] else []
    bits, total_ms = round(row["bits_per_token_per_block"], 1), 1e3 * row["latency_s"]
    return f"{codec_name(row['codec']):<39}{bits:>6}{total_ms:>9.1f}  {', '.join(marks)}".rstrip()


def _wire(row: dict[str, Any]) -> str:
    from astra_mpi.planner.hiding import wire_name

    needed = row["hides_above_bps"]
    above = "never" if needed is None else f"{needed / 1e6:.3g}"
    bits, total_ms = round(row["bits_per_token_per_block"], 1), 1e3 * row["latency_s"]
    marks = ", ".join([row["measured"], *["named"] * row["named"]])
    return f"{wire_name(row):<39}{bits:>6}{total_ms:>9.1f}{above:>18}  {marks}"


def _decode(plan: dict[str, Any]) -> list[str]:
    """One line per strategy and way of decoding."""
    lines = [
        f"{plan['new_tokens']} new tokens: milliseconds, seconds in all, cache of the rank that keeps most",
        f"{'strategy':<17}{'decode':<8}{'first':>9}{'per token':>11}{'wait':>9}{'all s':>9}{'cache MiB':>11}"
        f"{'of full':>9}{'merged is faster':>24}",
    ]
    for row in plan["strategies"]:
        if "skipped" in row:
            lines.append(f"{row['strategy']:<17}skipped: {row['skipped']}")
        for mode, way in row.get("modes", {}).items():
            last = _crossover(row) if mode == "merged" else ""
            cache = max(way["cache_bytes"])
            lines.append(
                f"{row['strategy']:<17}{mode:<8}{1e3 * way['first_token_s']:>9.1f}{1e3 * way['per_token_s']:>11.2f}"
                f"{1e3 * way['wait_s']:>9.2f}{way['total_s']:>9.3g}{cache / 2**20:>11.1f}"
                f"{cache / plan['full_cache_bytes']:>9.1%}{last:>24}".rstrip()
            )
            if "drafts" in way:
                lines.append(_drafts(way["drafts"]))
    return lines


def _drafts(drafts: dict[str, Any]) -> str:
    """Under the line of a way of decoding."""
    return (
        f"{'':<17}{drafts['draft_tokens']} drafts{'':<9}{1e3 * drafts['per_token_s']:>11.2f}"
        f"  {drafts['tokens_per_pass']:.2f} tokens per pass at acceptance {drafts['acceptance']:g},"
        f" {drafts['tokens_per_s']:.3g} tokens/s"
    )


def _crossover(row: dict[str, Any]) -> str:
    from astra_mpi.planner.advice import above

    return above(row["merged_beats_local_bps"])
