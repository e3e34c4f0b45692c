"""Figures of matplotlib, written whole."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from astra_mpi.files import whole


def missing_matplotlib() -> str:
    """What to do about it; empty if it is there."""
    if not find_spec("matplotlib"):
        return "plots need matplotlib; run pip install 'astra-mpi[plot]'"
    try:
        import matplotlib  # noqa: F401 - it wants a folder
    except OSError:
        return "matplotlib finds no folder that it can write; set MPLCONFIGDIR to one"
    return ""


def save_figure(path: str | Path, figure: Any, **options: Any) -> None:
    """Of matplotlib, in the format of the name's ending (PNG without one), whole or not at all.

    options: those of its `savefig`. AstraError if it cannot be written, ValueError on a format that is not known.
    """
    path = Path(path)
    buffer = io.BytesIO()  # libraries of image formats write past Python, and lose the reason of a failure
    figure.savefig(buffer, format=path.suffix[1:] or "png", **options)
    whole.write_bytes(path if path.suffix else path.with_suffix(".png"), buffer.getvalue())
