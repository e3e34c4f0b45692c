"""What sets text encoders apart from BERT, on several ranks and at every strategy, against the oracle."""

import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.models.encoders.encoder import CausalEncoderConfig, EncoderConfig
from astra_mpi.oracle.verify import verify
from astra_mpi.strategies import STRATEGIES
from helpers.fakes import bert_config, model_file

#: all that can stand together
MAPPED = {
    "counted": dict(pad_token=3, type_vocab=0, pooling="cls", has_pooler=True),
    "distances": dict(pad_token=3, type_vocab=0, relative_buckets=32),
    "classes": dict(
        pad_token=3, word_width=11, pooling="pooler", has_pooler=True, pooler_activation="gelu", n_classes=3
    ),
}
SMALL = dict(d_model=24, n_heads=6, n_kv_heads=2, n_layers=3, d_ff=37, activation="gelu", norm_eps=1e-5, vocab_size=50)
SMALL |= dict(max_positions=40)
ROTARY = {
    "post-norm": EncoderConfig(**SMALL, norm_first=False, embed_norm=True, biased=tuple("qkvo")),
    "windows": EncoderConfig(
        **SMALL, type_vocab=0, embed_norm=True, plain_start=True, windows=(0, 4, 0), rope_local_theta=50.0,
        pooling="pooler", has_pooler=True, pooler_over="mean", pooler_norm=True, n_classes=3,
    ),
    "normed-heads": EncoderConfig(
        **SMALL, type_vocab=0, rms=True, qk_norm="head", output_norms=True, pooling="pooler", has_pooler=True,
        pooler_over="each", n_classes=2, biased=("gate", "fc1", "fc2"),
    ),
    "last": CausalEncoderConfig(**SMALL, type_vocab=0, rms=True, qk_norm="head", pooling="last", normalize=True),
}  # fmt: skip


@pytest.mark.mpi
@pytest.mark.parametrize("name", [*MAPPED, *ROTARY])
def test_the_oracle_agrees(comm, name):
    config = ROTARY[name] if name in ROTARY else bert_config(**MAPPED[name])
    site = "kv" if name in ("windows", "distances") else "hidden"
    model = Model(
        model_file(config, CodecConfig(site=site, stages=2, codebook_size=16)), comm, get_backend("numpy", comm)
    )
    inputs, mask = random_batch(config, 3, 13, ragged=True)
    mask = mask[:, ::-1] | (np.arange(13) == 0)  # gaps, and tokens before them that are dropped but counted
    checks = verify(model, inputs, mask, list(STRATEGIES))
    if comm.rank == 0:
        assert [check for check in checks if not check.passed] == []
        done = {check.strategy.split(":")[0] for check in checks if not check.reason}
        assert done >= {"single", "sp", "tp", "astra"}
