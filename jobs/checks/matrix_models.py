"""Small random models of every family and codec, and inputs for them, for the matrix (jobs/checks/matrix.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.every import in_every
from astra_mpi.convert.presets import random_model
from astra_mpi.files.modelfile import write_model
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.gpt2 import GPT2Config
from astra_mpi.models.images import Preprocess
from astra_mpi.models.llama import LlamaConfig
from astra_mpi.models.vision.vit import ViTConfig

LETTERS = "abcdefghijklmnop .\n"
N_ITEMS = 4
#: so many that late codes have an exchange, and that codes in every second block leave one out
_LAYERS = 3
#: heads and widths that 1, 2 and 4 ranks can share
_SHAPE: dict[str, Any] = dict(d_model=32, n_heads=4, n_kv_heads=4, n_layers=_LAYERS, d_ff=48, norm_eps=1e-5)
_TEXT: dict[str, Any] = dict(vocab_size=len(LETTERS) + 2, max_positions=40)
_IMAGES: dict[str, Any] = dict(image_size=(16, 16), patch_size=4, channels=1)
#: columns of the page: families, and image encoders with registers, and without a class token
CONFIGS: dict[str, Any] = {
    "bert": BertConfig(**_SHAPE, **_TEXT, activation="gelu"),
    "vit": ViTConfig(**_SHAPE, **_IMAGES, activation="gelu", n_classes=3),
    "vit-registers": ViTConfig(**_SHAPE, **_IMAGES, activation="gelu", n_classes=3, registers=2, pooling="cls+mean"),
    "vit-probe": ViTConfig(
        **_SHAPE,
        **_IMAGES,
        activation="quick_gelu",
        class_tokens=0,
        pooling="pooler",
        pooler="attention",
        normalize=True,
    ),
    "gpt2": GPT2Config(**_SHAPE, **_TEXT, activation="gelu_tanh"),
    "llama": LlamaConfig(**_SHAPE | {"n_kv_heads": 2}, **_TEXT, activation="silu"),
}
DECODERS = ("gpt2", "llama")
SITES = ("hidden", "normed", "kv")
CODECS: dict[str, CodecConfig] = {
    f"{kind} {site}": CodecConfig(site=site, kind=kind, codebook_size=16, **count)
    for kind, count in (("residual", {"stages": 2}), ("grouped", {"groups": 2}))
    for site in SITES
}
#: codes with maps: of what a prediction misses, in every second block
MAPS: dict[str, CodecConfig] = {
    "predicted every 2": in_every(CodecConfig(site="normed", predict="linear", codebook_size=16), 2, _LAYERS),
}
PLAIN = "none"
#: families whose maps are tried
WITH_MAPS = ("gpt2",)
#: parts of image encoders that codes do not meet: one codec shows as much as all
ONE_CODEC = {"vit-registers": "residual normed", "vit-probe": "residual normed"}


@dataclass(frozen=True)
class Variant:
    """A model of the matrix."""

    family: str
    codec: str = PLAIN  # a name of CODECS or MAPS

    @property
    def coded(self) -> bool:
        return self.codec != PLAIN

    @property
    def has_maps(self) -> bool:
        return self.codec in MAPS

    @property
    def images(self) -> bool:
        return hasattr(CONFIGS[self.family], "image_size")

    @property
    def task(self) -> str | None:
        """Of `run`, of which a model that is no decoder has one."""
        if self.family in DECODERS:
            return None
        return "classify" if getattr(CONFIGS[self.family], "n_classes", 0) else "embed"

    @property
    def column(self) -> str:
        """Of the tables."""
        return f"{self.family} + maps" if self.has_maps else f"{self.family} + codes" * self.coded or self.family

    @property
    def file(self) -> str:
        return f"{self.family}-{self.codec.replace(' ', '-')}.h5"


def variants() -> Iterator[Variant]:
    for family in CONFIGS:
        codecs = [ONE_CODEC[family]] if family in ONE_CODEC else [*CODECS, *(MAPS if family in WITH_MAPS else ())]
        for codec in (PLAIN, *codecs):
            yield Variant(family, codec)


def tokenizer() -> str:
    """A token per letter; what is no letter of it is [UNK]."""
    vocab = {"[UNK]": 0, "[PAD]": 1} | {letter: i for i, letter in enumerate(LETTERS, 2)}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": "[UNK]"}
    return json.dumps({"version": "1.0", "added_tokens": [], "decoder": {"type": "Fuse"}, "model": model})


def write_models(folder: Path, wanted: list[Variant]) -> None:
    """A model file for each, and the inputs: texts, images with labels, token ids."""
    for variant in wanted:
        config = CONFIGS[variant.family]
        model = random_model(config, (CODECS | MAPS).get(variant.codec), seed=0)
        if variant.images:
            model = replace(model, preprocess=Preprocess(config.image_size, [0.5], [0.5]).as_dict())
        else:
            model = replace(model, tokenizer=tokenizer(), preprocess={"max_tokens": 24})
        write_model(folder / variant.file, model)
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice(list(LETTERS[:-1]), n)).strip() + "a" for n in (21, 9, 14, 18)]
    (folder / "texts.txt").write_text("\n".join(texts) + "\n")
    images = draw.integers(0, 256, (N_ITEMS, 16, 16), np.uint8)
    np.savez(folder / "images.npz", images=images, labels=draw.integers(0, 3, N_ITEMS))
    ids = draw.integers(0, _TEXT["vocab_size"], (8, 12))
    np.savez(folder / "tokens.npz", tokens=ids, lengths=np.full(8, 12))
    many = draw.integers(0, 256, (16, 16, 16), np.uint8)
    np.savez(folder / "many.npz", images=many, labels=draw.integers(0, 3, 16))
