"""Mixtures of experts are refused by name."""

import json

import pytest

from astra_mpi.convert.hugging_face import convert
from astra_mpi.errors import InputError


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("mixtral", {"num_local_experts": 8}),
        ("qwen3_moe", {}),
        ("granitemoe", {}),
        ("deepseek_v3", {"n_routed_experts": 4}),
    ],
)
def test_mixtures_of_experts_are_named(tmp_path, model_type, settings):
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, **settings}))
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"'{model_type}' is a mixture of experts"):
        convert(tmp_path)
