"""The classify job's data, and its results side by side.

python jobs/digits.py make FOLDER     scikit-learn's 1,797 digits as train.npz (1,437) and test.npz (360)
python jobs/digits.py compare FOLDER  accuracy of sp.out.h5 and astra.out.h5, and how often their classes agree
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import h5py
import numpy as np

N_TEST = 360


def write_digits(folder: Path) -> None:
    """images (n, 8, 8) uint8 grey, labels (n,) int64, one fifth of them to test on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    for name, chosen in (("test", order[:N_TEST]), ("train", order[N_TEST:])):
        np.savez(folder / f"{name}.npz", images=images[chosen], labels=digits.target[chosen])


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_digits(folder)


def compare(folder: Path) -> None:
    classes, summaries = [], []
    for strategy in ("sp", "astra"):
        with h5py.File(folder / f"{strategy}.out.h5", "r") as file:
            classes.append(file["outputs/class"][()])
        summaries.append(json.loads((folder / f"{strategy}.out.json").read_text()))
    exact, coded = classes
    rows = [
        (f"{len(exact)} test images, {summaries[1]['ranks']} ranks", "exact (sp)", "astra"),
        ("bits per token per block", *(round(s["bits_per_token_per_block"], 1) for s in summaries)),
        ("bytes contributed, measured", *(sum(s["contributed_bytes"]) for s in summaries)),
        ("bytes contributed, formula", *(sum(s["formula_bytes"]) for s in summaries)),
        ("accuracy", *(f"{s['metrics']['accuracy']:.1%}" for s in summaries)),
        ("same class as exact", "100%", f"{np.mean(exact == coded):.1%}"),
    ]
    for name, *cells in rows:
        print(f"{name:<34}" + "".join(f"{cell:>14}" for cell in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("make", "compare"))
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    {"make": make, "compare": compare}[args.step](args.folder)


if __name__ == "__main__":
    main()
