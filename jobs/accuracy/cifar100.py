"""CIFAR-100's binary version as the .npz files that the decks in jobs/models read.

python jobs/accuracy/cifar100.py cifar-100-binary.tar.gz OUT_FOLDER      (or the unpacked folder)
The archive (168,513,733 bytes, md5 03b5dce01913d631647c71ecec9e9cb8) is at https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import argparse
import tarfile
from pathlib import Path

import numpy as np

RECORD = 2 + 3 * 32 * 32  # coarse class, fine class, red, green and blue planes


def contents(source: Path, name: str) -> bytes:
    if source.is_dir():
        return (source / name).read_bytes()
    with tarfile.open(source) as archive:
        member = next((m for m in archive if Path(m.name).name == name), None)
        file = archive.extractfile(member) if member else None
        if file is None:
            raise SystemExit(f"{source} has no {name}; give the binary version of CIFAR-100")
        return file.read()


def convert(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """-> images (N, 32, 32, 3) uint8, fine classes (N,) int64."""
    if not raw or len(raw) % RECORD:
        raise SystemExit(f"{len(raw)} bytes are not records of {RECORD}; is the file damaged?")
    records = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    images = records[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, 1].astype(np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        images, labels = convert(contents(args.source, f"{name}.bin"))
        np.savez(args.folder / f"{name}.npz", images=images, labels=labels)
        print(f"{args.folder / name}.npz: {len(images)} images")


if __name__ == "__main__":
    main()
