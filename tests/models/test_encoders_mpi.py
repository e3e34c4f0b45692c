"""What sets text encoders apart from BERT, on several ranks and at every strategy, against the oracle."""

import numpy as np
import pytest

from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.oracle.verify import verify
from astra_mpi.strategies import STRATEGIES
from helpers.fakes import bert_config, model_file

#: all that can stand together
MAPPED = {
    "counted": dict(pad_token=3, type_vocab=0, pooling="cls", has_pooler=True),
    "classes": dict(
        pad_token=3, word_width=11, pooling="pooler", has_pooler=True, pooler_activation="gelu", n_classes=3
    ),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", MAPPED)
def test_the_oracle_agrees(comm, name):
    config = bert_config(**MAPPED[name])
    model = Model(model_file(config), comm, get_backend("numpy", comm))
    inputs, mask = random_batch(config, 3, 13, ragged=True)
    mask = mask[:, ::-1] | (np.arange(13) == 0)  # gaps, and tokens before them that are dropped but counted
    checks = verify(model, inputs, mask, list(STRATEGIES))
    if comm.rank == 0:
        assert [check for check in checks if not check.passed] == []
        assert {check.strategy.split(":")[0] for check in checks if not check.reason} >= {"single", "sp", "tp", "astra"}
