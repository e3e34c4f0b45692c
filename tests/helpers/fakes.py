"""Small random models and codecs in memory, for tests that need no file."""

from dataclasses import replace

import numpy as np

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook, no_codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import energy
from astra_mpi.codec.predictor import Predictor
from astra_mpi.device.weights import narrowed
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.kernels import cpu
from astra_mpi.models import FAMILIES
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.gpt2 import GPT2Config
from astra_mpi.models.llama import LlamaConfig
from astra_mpi.models.vision.vit import ViTConfig


def vit_config(grid=(3, 5), **changes):
    settings = dict(d_model=24, n_heads=3, n_kv_heads=3, n_layers=2, d_ff=40, activation="gelu", norm_eps=1e-12)
    settings |= dict(image_size=(4 * grid[0], 4 * grid[1]), patch_size=4, channels=3, n_classes=7)
    return ViTConfig(**settings | changes)


#: the rarer parts of image encoders: changes of `vit_config`
IMAGE_PARTS = {
    "registers": dict(registers=3, gated=True, pooling="cls+mean", activation="silu"),
    "distilled": dict(class_tokens=2, pooling="distilled", image_size=(14, 21)),
    "tanh": dict(class_tokens=2, pooling="pooler", pooler="tanh", n_classes=0),
    "projected": dict(patch_bias=False, embed_norm=True, projection=10, normalize=True, n_classes=0)
    | dict(activation="quick_gelu"),
    "probe": dict(class_tokens=0, pooling="pooler", pooler="attention", n_classes=0, normalize=True),
    "mean": dict(class_tokens=0, pooling="mean", n_classes=0),
}


def bert_config(**changes):
    settings = dict(d_model=24, n_heads=3, n_kv_heads=3, n_layers=2, d_ff=40, activation="gelu", norm_eps=1e-12)
    return BertConfig(**settings | dict(vocab_size=50, max_positions=40) | changes)


def gpt2_config(**changes):
    settings = dict(d_model=24, n_heads=3, n_kv_heads=3, n_layers=2, d_ff=40, activation="gelu_tanh", norm_eps=1e-5)
    return GPT2Config(**settings | dict(vocab_size=53, max_positions=40) | changes)


def llama_config(**changes):
    """Three query heads per key head."""
    settings = dict(d_model=24, n_heads=6, n_kv_heads=2, n_layers=2, d_ff=37, activation="silu", norm_eps=1e-5)
    return LlamaConfig(**settings | dict(vocab_size=53, max_positions=40) | changes)


def random_weights(config, seed=0):
    """N(0, 0.2): large enough that attention is not uniform and every weight matters."""
    rng = np.random.default_rng(seed)
    shapes = FAMILIES[config.family].weight_shapes(config)
    return {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}


def random_basis(rng, width, n_columns):
    return np.linalg.qr(rng.normal(size=(width, n_columns)))[0].astype(np.float32)


def random_codec(config, codec_config, seed=0):
    """Entries of about the activations' size; a code is some nearest entry, which is all the arithmetic asks for.

    With encoder "subspace" each codebook has a random one, of 5/8 of the width.
    """
    rng = np.random.default_rng(seed)
    kv = codec_config.site == "kv"
    width = config.d_kv if kv else config.d_model

    def book(part):
        if part.rule.transforms:
            x = rng.normal(0, 0.7, (200, width)) * np.linspace(0.2, 2, width) + 0.5
            return part.rule.fit(x.astype(np.float32), part, rng, cpu, lambda done, total: None)
        shape = part.rule.shape(part, width)
        scale = 1.0 / (1 + np.arange(shape[0]))[:, None, None] if part.kind == "residual" else 1.0
        entries = (rng.normal(0, 0.7, shape) * scale).astype(np.float32)
        ordinary = part.count if part.near and part.count else None
        if ordinary is not None:
            entries[ordinary:, -1] = 0
        basis = random_basis(rng, width, width * 5 // 8) if codec_config.encoder == "subspace" else None
        return Codebook(codec_config.kind, entries, width, basis, ordinary=ordinary)

    blocks = tuple(BlockCodec(tuple(book(part) for part in codec_config.of(i))) for i in range(config.n_layers))
    if codec_config.has_maps:
        coded = [
            replace(b, predictor=random_predictor(rng, width, i, codec_config.inputs))
            for i, b in enumerate(blocks)
            if i
        ]
        blocks = (BlockCodec((no_codebook(codec_config, width),)), *coded)
    return Codec(codec_config, blocks)


def random_predictor(rng, width, i, n_inputs=0):
    """One that leaks, as fitted ones do: of low rank in odd blocks, a whole matrix in even ones."""
    bias, known = rng.normal(0, 0.1, width), (1 + n_inputs) * width
    if i % 2 == 0:
        whole = rng.normal(0, 0.3 / width**0.5, (known, width))
        whole[:width] -= 0.2 * np.eye(width)
        return Predictor((whole,), bias)
    rank = max(1, width // 3)
    factors = tuple(rng.normal(0, 0.6 / n**0.5, (n, m)) for n, m in ((known, rank), (rank, width)))
    return Predictor(factors, bias, 0.8)


def model_file(config, codec_config=None, seed=0, dtype="float32"):
    codec = random_codec(config, codec_config or CodecConfig(stages=2, codebook_size=16), seed)
    weights = {name: narrowed(name, array, dtype) for name, array in random_weights(config, seed).items()}
    return ModelFile(config, weights, codec, None, None, {}, f"{seed:064d}", dtype)


def squared_error(codebook, x, kernels):
    """||x - x^||^2 / ||x - mean(x)||^2 over the samples x (n, D); 0 when the samples are all equal and exact."""
    rest = x - codebook.decode(codebook.encode(x, kernels), kernels)
    return energy(rest) / max(energy(x - x.mean(axis=0, dtype=np.float64)), np.finfo(np.float64).tiny)
