"""ASTRA-MPI: Transformer inference on several machines joined by a slow network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.version import __version__

__all__ = ["__version__", "load"]

# In a source checkout the kernels lie beside the package; a wheel has them inside (pyproject.toml).
if not (Path(__path__[0]) / "kernels").is_dir():
    __path__.append(str(Path(__path__[0]).parent))

if TYPE_CHECKING:
    from astra_mpi.engine import Model


def load(path: str, **options: Any) -> Model:
    """Load a model file for inference, collective over `comm`; see `astra_mpi.loading.load`."""
    from astra_mpi.loading import load as _load

    return _load(path, **options)
