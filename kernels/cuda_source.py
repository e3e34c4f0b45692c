"""The CUDA sources as they are compiled, readable without CuPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "cuda"


def source(name: str) -> str:
    """The text of `name`.cu after what all files share; errors point into the files."""
    shared = ("common.cuh", "attention.cuh") if name.startswith("attention") else ("common.cuh",)
    return "".join(f'#line 1 "{file}"\n{(FOLDER / file).read_text()}\n' for file in (*shared, f"{name}.cu"))


def options(half: bool = False, vector: bool = False, **defines: Any) -> tuple[str, ...]:
    """Parameters of a source as compiler options."""
    values = {"HALF": int(half), "VECTOR": int(vector), **defines}
    return ("--std=c++17", *(f"-D{key}={value}" for key, value in values.items()))
