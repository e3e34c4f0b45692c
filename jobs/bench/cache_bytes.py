"""Cache of decoding alone on 4 ranks with 32 codes per vector (K = 1024), beside the full cache and the paper's count.

mpirun -n 4 python jobs/bench/cache_bytes.py
Random weights and codebooks: bytes do not depend on them. Keys and values of the Llama shape are those of Llama-3-8B (8
heads of 128, 32 blocks); its other layers are narrow, since nothing of them is kept.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert.presets import random_weights
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.models.gpt2 import GPT2Config
from astra_mpi.models.llama import LlamaConfig

T, NEW, GROUPS, K = 1024, 2, 32, 1024


def random_codec(config: GPT2Config | LlamaConfig, site: str) -> Codec:
    rng = np.random.default_rng(0)
    width = config.d_kv if site == "kv" else config.d_model

    def book() -> Codebook:
        entries = rng.standard_normal((GROUPS, K, width // GROUPS), dtype=np.float32)
        return Codebook("grouped", entries, width)

    blocks = [BlockCodec((book(), book()) if site == "kv" else (book(),)) for _ in range(config.n_layers)]
    return Codec(CodecConfig(site, "grouped", K, GROUPS), tuple(blocks))


def main() -> None:
    comm = MPI.COMM_WORLD
    shapes = {
        "GPT-2 small, hidden": (GPT2Config(768, 12, 12, 12, 64, "gelu_tanh", 1e-5, 512, 2048), "hidden"),
        "Llama-3-8B's keys and values": (LlamaConfig(1024, 8, 8, 32, 64, "silu", 1e-5, 512, 2048), "kv"),
    }
    for name, (config, site) in shapes.items():
        file = ModelFile(config, random_weights(config, 0), random_codec(config, site))
        model = Model(file, comm, get_backend("numpy", comm))
        model.use("astra", remote="gemm")
        ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, T))
        model.generate(ids, max_new_tokens=NEW, decode="local", far="codes")
        generation = model.report["generation"]
        codes = 2 * GROUPS if site == "kv" else GROUPS
        near = 1 / comm.size
        packed = near + (1 - near) * codes * 10 / (2 * config.d_kv * 16)
        if comm.rank == 0:
            held, full = max(generation["cache_bytes"]), generation["full_cache_bytes"]
            print(f"{name}: {held} of {full} bytes = {held / full:.1%}", end="; ")
            print(f"packed codes beside float16 keys and values, as the paper counts: {packed:.1%}")


if __name__ == "__main__":
    main()
