"""Latencies that the virtual clock predicts beside those measured on the emulated cluster.

python jobs/cluster/validate_clock.py work/validate
Reads what `validate_clock.sh` has measured: wall-RANKS-MBPS.CODEC.json and virtual-RANKS.CODEC.json of `astra-mpi
bench`. Prints a table, then one JSON line. Exit code 4 when a prediction is off by more than its bound.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

BOUNDS = {"single": 0.10, "sp": 0.20, "astra": 0.10}


def read(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(network, strategy) -> run."""
    return {(run["network"], run["strategy"]): run for run in json.loads(path.read_text())["runs"]}


def compare(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for path in sorted(
        folder.glob("wall-*.json"), key=lambda path: [int(n) for n in path.name.split(".")[0].split("-")[1:]]
    ):
        name, codec, _ = path.name.split(".")
        _, ranks, mbps = name.split("-")
        predicted = read(folder / f"virtual-{ranks}.{codec}.json")
        for (_, strategy), wall in read(path).items():
            virtual = predicted[f"{mbps}Mbps", strategy]
            measured_s, virtual_s = (run["latency_s"]["total"] for run in (wall, virtual))
            rows.append(
                {
                    "ranks": int(ranks),
                    "mbps": int(mbps),
                    "strategy": strategy,
                    "codec": codec if strategy == "astra" else None,
                    "measured_s": measured_s,
                    "quartiles_s": wall["spread"]["quartiles"],
                    "predicted_s": virtual_s,
                    "error": virtual_s / measured_s - 1,
                    "within": abs(virtual_s / measured_s - 1) <= BOUNDS[strategy],
                }
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    rows = compare(parser.parse_args().folder)
    print("| ranks | Mbps | strategy | measured ms | quartiles | predicted ms | error |\n|---|---|---|---|---|---|---|")
    for row in rows:
        low, high = (1e3 * q for q in row["quartiles_s"])
        label = f"{row['strategy']} {row['codec'] or ''}".strip()
        print(
            f"| {row['ranks']} | {row['mbps']} | {label} | {1e3 * row['measured_s']:.0f} | {low:.0f}..{high:.0f}"
            f" | {1e3 * row['predicted_s']:.0f} | {row['error']:+.1%}{'' if row['within'] else ' too far'} |"
        )
    print(json.dumps(rows))
    return 0 if all(row["within"] for row in rows) else 4


if __name__ == "__main__":
    sys.exit(main())
