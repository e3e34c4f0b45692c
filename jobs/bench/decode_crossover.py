"""Time per new token of both ways of decoding over bandwidth and length of the prompt, measured and predicted.

mpirun -n 4 python jobs/bench/decode_crossover.py FOLDER [--json FILE]   by the virtual clock; makes FOLDER/decode-4.h5
python jobs/bench/decode_crossover.py FOLDER --draw docs/explanation/decode-crossover.svg   of FOLDER/crossover.json

GPT-2-small shape with LAYERS blocks, random weights and a vocabulary of 2048, so that the head, the same in both ways,
does not hide their difference; M = 4, K = 256. Merged decoding does the same after any prefill, so it is measured after
`astra` alone. Predictions are those of `plan`, with the speeds that rank 0 measures first, in CPU time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.files import whole
from astra_mpi.files.figure import save_figure

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
MBPS = (1, 10, 30, 100, 300, 1000)
RTT_MS = 0.2
N_NEW, LAYERS, VOCABULARY = 17, 4, 2048
SHOWN = (256, 2048, 8192)


def model_path(folder: Path) -> Path:
    from astra_mpi.codec.config import CodecConfig
    from astra_mpi.convert.presets import preset_config, random_model
    from astra_mpi.files.modelfile import write_model

    path = folder / f"decode-{LAYERS}.h5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(preset_config("gpt2", LENGTHS[-1] + N_NEW), n_layers=LAYERS, vocab_size=VOCABULARY)
        write_model(path, random_model(config, CodecConfig(), 0))
    return path


def measure(folder: Path, path: Path) -> None:
    """Collective; rank 0 writes `path`."""
    from mpi4py import MPI

    import astra_mpi
    from astra_mpi.device.threads import set_threads
    from astra_mpi.doctor.probes import kernel_speeds, quiet_barrier
    from astra_mpi.errors import collective
    from astra_mpi.network.spec import parse_network

    comm = MPI.COMM_WORLD
    set_threads(1)
    with collective(comm):
        if comm.rank == 0:
            model_path(folder)
    model = astra_mpi.load(
        str(model_path(folder)), comm=comm, strategy="astra", counted_keys=False, network=network(100), clock="virtual"
    )
    speeds = kernel_speeds(model.backend.kernels, now=time.thread_time) if comm.rank == 0 else None
    quiet_barrier(comm)
    rows = []
    for n_tokens in LENGTHS:
        ids = np.random.default_rng(n_tokens).integers(0, model.config.vocab_size, (1, n_tokens))
        ways = [("sp", "local", 100), ("astra", "local", 100), *(("astra", "merged", mbps) for mbps in MBPS)]
        for strategy, mode, mbps in ways:
            model.use(strategy, counted_keys=False)
            model.exchange.connect(parse_network(network(mbps)))
            model.generate(ids, max_new_tokens=N_NEW, decode=mode)
            made = model.report["generation"]
            rows.append({"tokens": n_tokens, "strategy": strategy, "decode": mode, "mbps": mbps} | figures(made))
            if comm.rank == 0:
                print(rows[-1], file=sys.stderr, flush=True)
    if speeds is not None:
        found = {"ranks": comm.size, "layers": LAYERS, "vocabulary": VOCABULARY, "rtt_ms": RTT_MS, "new_tokens": N_NEW}
        found |= {"speeds": dataclasses.asdict(speeds), "rows": rows}
        predict(found, folder)
        whole.write_text(path, json.dumps(found, indent=1) + "\n")
        print(json.dumps({"json": str(path), "rows": len(rows)}))


def network(mbps: float) -> str:
    return f"{mbps:g}Mbps,rtt={RTT_MS:g}ms"


def figures(made: dict[str, Any]) -> dict[str, Any]:
    names = ("first_token_s", "decode_bytes", "cache_bytes", "full_cache_bytes")
    return {"per_token_s": made["per_token_s"]["median"], **{name: made[name] for name in names}}


def predict(found: dict[str, Any], folder: Path) -> None:
    """Adds `predicted_s` to the rows, and `crossover_mbps`, predicted, to the whole."""
    from astra_mpi.costs.latency import Network, Speeds
    from astra_mpi.costs.setting import Setting, compute_seconds, wait_seconds
    from astra_mpi.planner.decode import crossover_bps, steps
    from astra_mpi.planner.inputs import read_outline

    config, coding = read_outline(str(model_path(folder)))
    speeds = (Speeds(**found["speeds"]),) * found["ranks"]
    crossovers: dict[str, dict[int, float | None]] = {"sp": {}, "astra": {}}

    def setting(n_tokens: int, mbps: float) -> Setting:
        return Setting(config, n_tokens, speeds, Network(1e6 * mbps, found["rtt_ms"] / 1e3), coding=coding)

    for row in found["rows"]:
        at = setting(row["tokens"], row["mbps"])
        step = steps(at, row["strategy"], N_NEW, at.even)[row["decode"]]
        row["predicted_s"] = compute_seconds(at, step) + wait_seconds(step, at.network)
    for strategy, by_length in crossovers.items():
        for n_tokens in LENGTHS:
            at = setting(n_tokens, 100)
            bps = crossover_bps(at, steps(at, strategy, N_NEW, at.even))
            by_length[n_tokens] = None if bps is None else bps / 1e6
    found["predicted_crossover_mbps"] = crossovers
    found["measured_crossover_mbps"] = {name: measured_crossovers(found["rows"], name) for name in crossovers}


def measured_crossovers(rows: list[dict[str, Any]], strategy: str) -> dict[int, float | None]:
    """Where merged meets local, between two measured bandwidths on logarithmic axes; None beyond them."""
    found: dict[int, float | None] = {}
    for n_tokens in LENGTHS:
        here = [row for row in rows if row["tokens"] == n_tokens]
        local = next(r["per_token_s"] for r in here if r["decode"] == "local" and r["strategy"] == strategy)
        merged = [row["per_token_s"] for row in here if row["decode"] == "merged"]
        above = np.log(np.array(merged) / local)
        i = next((i for i in range(1, len(MBPS)) if above[i - 1] > 0 >= above[i]), None)
        if i is None:
            found[n_tokens] = None
            continue
        part = above[i - 1] / (above[i - 1] - above[i])
        found[n_tokens] = float(MBPS[i - 1] * (MBPS[i] / MBPS[i - 1]) ** part)
    return found


def draw(found: dict[str, Any], path: str) -> None:
    """Left: time per token over bandwidth. Right: where merged meets local, over the length of the prompt."""
    import matplotlib
    from matplotlib.figure import Figure

    from astra_mpi.measure.plots import PALETTE

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, n_tokens in zip(PALETTE, SHOWN, strict=False):
        here = [row for row in found["rows"] if row["tokens"] == n_tokens]
        merged = [row for row in here if row["decode"] == "merged"]
        ms = [[1e3 * row[name] for row in merged] for name in ("per_token_s", "predicted_s")]
        left.plot(MBPS, ms[0], "o", color=color, label=f"{n_tokens} tokens, merged")
        left.plot(MBPS, ms[1], "-", color=color, linewidth=1)
        for row, style in zip((r for r in here if r["decode"] == "local"), (":", "--"), strict=True):
            label = f"{n_tokens} tokens, local after {row['strategy']}"
            left.axhline(1e3 * row["per_token_s"], color=color, linestyle=style, label=label, linewidth=1.2)
    left.set(xscale="log", yscale="log", xlabel="bandwidth of a port, Mbps", ylabel="milliseconds per new token")
    left.set_title("lines: local measured; merged predicted", fontsize=10)
    left.legend(fontsize=7)
    for (name, measured), color in zip(found["measured_crossover_mbps"].items(), PALETTE, strict=False):
        predicted = found["predicted_crossover_mbps"][name]
        right.plot(*drawn(measured), "o", color=color, label=f"after {name}, measured")
        right.plot(*drawn(predicted), "-", color=color, label=f"after {name}, predicted")
    right.set(xscale="log", yscale="log", xlabel="tokens of the prompt", ylabel="Mbps above which merged beats local")
    right.set_xticks(LENGTHS, labels=[str(n) for n in LENGTHS])
    right.minorticks_off()
    right.set_title(f"crossover, {found['ranks']} ranks, round trip {found['rtt_ms']:g} ms", fontsize=10)
    right.legend(fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "decode"}):
        save_figure(path, figure, metadata={"Date": None} if path.endswith(".svg") else None)


def drawn(by_length: dict[Any, float | None]) -> tuple[list[int], list[float]]:
    known = {int(n): mbps for n, mbps in by_length.items() if mbps is not None}
    return list(known), list(known.values())


def table(found: dict[str, Any]) -> str:
    """Markdown: milliseconds per token, measured (predicted)."""
    lines = [
        "| tokens | local after `sp` | local after `astra` | " + " | ".join(f"merged, {m} Mbps" for m in MBPS) + " |",
        "|" + "---|" * (3 + len(MBPS)),
    ]
    for n_tokens in LENGTHS:
        cells = [
            f"{1e3 * row['per_token_s']:.1f} ({1e3 * row['predicted_s']:.1f})"
            for row in found["rows"]
            if row["tokens"] == n_tokens
        ]
        lines.append(f"| {n_tokens} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the model and crossover.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default FOLDER/crossover.json")
    parser.add_argument("--draw", metavar="PICTURE", help="draw what was measured, and print it as a table")
    args = parser.parse_args()
    path = args.json or args.folder / "crossover.json"
    if args.draw is None:
        measure(args.folder, path)
    else:
        found = json.loads(path.read_text())
        draw(found, args.draw)
        print(table(found))


if __name__ == "__main__":
    main()
