"""The table of replicas.sh: how much faster four nodes are than one, and whether they answer alike to the bit.

Times are from the first batch to the last. In real time that counts what the one node, or the first of four, reads and
writes between batches; by the virtual clock it does not. "busy" is the share of the nodes' time in which they compute,
by their speeds: what the queue leaves idle is the rest. Where the machine does other work, it is surer than the ratio
of two runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import numpy as np

SPEEDS = {"even": (0.5,) * 4, "uneven": (0.7, 0.6, 0.4, 0.3)}


def read(folder: Path, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    with h5py.File(folder / f"{name}.h5", "r") as file:
        return file["outputs/embedding"][()], json.loads((folder / f"{name}.json").read_text())


def row(folder: Path, name: str) -> dict[str, Any]:
    """One cluster of a round beside that round's one node."""
    speeds = SPEEDS[name]
    alone, one = read(folder, "one")
    values, summary = read(folder, name)
    node_s, elapsed_s = one["elapsed_s"], summary["elapsed_s"]
    work = sum(speed * mine["busy_s"] for speed, mine in zip(speeds, summary["replicas"], strict=True))
    return {
        "one_s": node_s,
        "elapsed_s": elapsed_s,
        "over_one": node_s / elapsed_s,
        "of_speeds": node_s * 0.5 / sum(speeds) / elapsed_s,
        "busy": work / sum(speeds) / elapsed_s,
        "same_bits": values.tobytes() == alone.tobytes(),
        "batches": [mine["batches"] for mine in summary["replicas"]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rounds", type=Path, nargs="+", help="the folders of replicas.sh, one a round")
    folders = parser.parse_args().rounds
    title = f"{'one node s':>11}{'nodes s':>9}{'over one':>10}{'of the sum of speeds':>22}{'busy':>8}{'same bits':>11}"
    print(f"{'nodes':<20}{title}  batches")
    clusters: dict[str, Any] = {}
    for name, speeds in SPEEDS.items():
        rows = [row(folder, name) for folder in folders]
        told = "/".join(f"{speed:g}" for speed in speeds)
        for mine in rows:
            print(
                f"{told:<20}{mine['one_s']:>11.1f}{mine['elapsed_s']:>9.1f}{mine['over_one']:>9.2f}x"
                f"{mine['of_speeds']:>21.1%} {mine['busy']:>7.1%}{'yes' if mine['same_bits'] else 'no':>11}"
                f"  {'/'.join(map(str, mine['batches']))}"
            )
        medians = {key: median(mine[key] for mine in rows) for key in ("over_one", "of_speeds", "busy")}
        print(
            f"{'  median':<40}{medians['over_one']:>9.2f}x{medians['of_speeds']:>21.1%} {medians['busy']:>7.1%}"
            f"{'yes' if all(mine['same_bits'] for mine in rows) else 'no':>11}"
        )
        clusters[name] = {"speeds": speeds, **medians, "rounds": rows}
    print(json.dumps(clusters))


if __name__ == "__main__":
    main()
