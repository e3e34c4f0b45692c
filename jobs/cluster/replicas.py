"""The table of replicas.sh: how much faster four nodes are than one, and whether they answer alike to the bit.

"busy" is the share of the nodes' time in which they computed, by their speeds: what the queue leaves idle is the rest.
Where the machine does other work, it is surer than the ratio of two runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SPEEDS = {"even": (0.5,) * 4, "uneven": (0.7, 0.6, 0.4, 0.3)}


def read(folder: Path, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    with h5py.File(folder / f"{name}.h5", "r") as file:
        return file["outputs/embedding"][()], json.loads((folder / f"{name}.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    alone, one = read(folder, "one")
    node_s = one["metrics"]["forward_s"]  # of a node of half a core, without what it reads and writes
    print(f"{len(alone)} passages on one half-core node: {node_s:.1f} s")
    shares = f"{'of the sum of speeds':>22}{'busy':>8}"
    print(f"{'nodes':<20}{'elapsed s':>10}{'over one':>10}{shares}{'same bits':>11}  batches")
    rows = []
    for name, speeds in SPEEDS.items():
        values, summary = read(folder, name)
        elapsed_s, ideal_s = summary["elapsed_s"], node_s * 0.5 / sum(speeds)
        same = values.tobytes() == alone.tobytes()
        batches = [mine["batches"] for mine in summary["replicas"]]
        work = sum(speed * mine["busy_s"] for speed, mine in zip(speeds, summary["replicas"], strict=True))
        busy = work / sum(speeds) / elapsed_s
        told = "/".join(f"{speed:g}" for speed in speeds)
        print(
            f"{told:<20}{elapsed_s:>10.1f}{node_s / elapsed_s:>9.2f}x{ideal_s / elapsed_s:>21.1%} {busy:>7.1%}"
            f"{'yes' if same else 'no':>11}  {'/'.join(map(str, batches))}"
        )
        rows.append({"speeds": speeds, "elapsed_s": elapsed_s, "over_one": node_s / elapsed_s, "busy": busy})
    print(json.dumps({"one_s": node_s, "rows": rows}))


if __name__ == "__main__":
    main()
