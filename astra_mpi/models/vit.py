"""ViT (Dosovitskiy et al., arXiv 2010.11929): patches, a class token, pre-LayerNorm blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import ModelConfig, require
from astra_mpi.device.xp import beside, module_of, take
from astra_mpi.models.batch import Batch
from astra_mpi.models.family import Family
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.partition import Layout


@dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """`ModelConfig` plus what an image model needs."""

    image_size: tuple[int, int]  # height, width in pixels
    patch_size: int  # pixels
    channels: int = 3
    n_classes: int = 0  # 0: no classifier; the answer is then the normalised class token
    qkv_bias: bool = True
    labels: tuple[str, ...] = ()  # class names, or none

    family: ClassVar[str] = "vit"

    def __post_init__(self) -> None:
        super().__post_init__()
        h, w = self.image_size
        require(
            self.patch_size >= 1 and h >= 1 and w >= 1 and h % self.patch_size == 0 and w % self.patch_size == 0,
            f"config: image_size {h} x {w} is not a multiple of patch_size {self.patch_size}",
        )
        require(self.channels >= 1 and self.n_classes >= 0, "config: channels must be positive, n_classes not negative")
        require(
            len(self.labels) in (0, self.n_classes), f"config: {len(self.labels)} labels for {self.n_classes} classes"
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def n_class(self) -> int:
        return 1


class ViT(Family):
    """Embedding and head; the blocks are shared (`Block`)."""

    Config = ViTConfig
    recipe = Recipe(norm_first=True)
    default_site = "normed"
    config: ViTConfig

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None = None) -> Batch:
        """Normalised float32 images (B, channels, height, width) -> batch of patches. InputError on another shape."""
        require(mask is None, "ViT takes no mask: every patch of an image counts")
        want = (self.config.channels, *self.config.image_size)
        images = np.asarray(inputs)
        require(
            images.ndim == 4 and images.shape[1:] == want,
            f"images have shape {images.shape}, but this model takes (B, channels, height, width)"
            f" = (B, {', '.join(map(str, want))})",
        )
        require(
            images.dtype.kind == "f",
            f"images are {images.dtype}; give float32 already normalised, or uint8 (B, height, width, channels)",
        )
        gh, gw = self.config.grid
        return Batch(np.full(len(images), gh * gw, dtype=np.int64), np.ascontiguousarray(images, dtype=np.float32))

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank: patch projection plus position; class token in the class rows."""
        c, p = self.config.channels, self.config.patch_size
        gh, gw = self.config.grid
        patches = batch.values.reshape(len(batch.values), c, gh, p, gw, p)
        token = layout.row_token  # (n,), 0 is the class token
        patch = np.maximum(token - 1, 0)
        pixels = patches[layout.row_sequence, :, patch // gw, :, patch % gw, :].reshape(len(token), c * p * p)
        bias = self.w["embed.patch.bias"]
        x = self.product(module_of(bias).asarray(pixels, bias.dtype), "embed.patch.weight") + bias  # (n, D)
        x[beside(x, layout.class_rows)] = self.w["embed.class"]
        return x + take(self.w["embed.position"], token)

    def pool(self, x: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) -> this rank's share (B, D) of the class token averaged over its replicas."""
        return layout.class_share(x)

    def final(self, x: np.ndarray) -> np.ndarray:
        """The norm after the last block, (n, D) -> (n, D)."""
        return self.kernels.layer_norm(x, self.w["norm.weight"], self.w["norm.bias"], self.config.norm_eps)

    def head(self, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Averaged class token (B, D) -> logits (B, classes), or the normalised token without a classifier."""
        features = self.final(pooled)
        return self.product(features, "head.weight") + self.w["head.bias"] if self.config.n_classes else features

    @staticmethod
    def weight_shapes(config: ViTConfig) -> Shapes:
        d, (gh, gw) = config.d_model, config.grid
        shapes: Shapes = {
            "embed.patch.weight": (config.channels * config.patch_size**2, d),
            "embed.patch.bias": (d,),
            "embed.class": (d,),
            "embed.position": (1 + gh * gw, d),
            "norm.weight": (d,),
            "norm.bias": (d,),
        }
        if config.n_classes:
            shapes |= {"head.weight": (d, config.n_classes), "head.bias": (config.n_classes,)}
        return shapes | block_shapes(config, ViT.recipe, () if config.qkv_bias else "qkv")

    reference = Reference(
        architectures=("ViTModel", "ViTForImageClassification", "ViTForMaskedImageModeling"),
        fields=dict(
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            hidden_act="gelu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.02,
            layer_norm_eps=1e-12,
            image_size=224,
            patch_size=16,
            num_channels=3,
            qkv_bias=True,
            encoder_stride=16,
            pooler_output_size=None,
            pooler_act="tanh",
        ),
        guarded={"is_causal": (False,)},
        harmless={**ENCODER, **dict.fromkeys(("tie_word_embeddings", "vocab_size"), "there are no words")},
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """Hugging Face ViT config.json -> config. InputError on what is not supported."""
        d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
        hf.only("head_dim", (d_model // n_heads,) if "head_dim" in hf.values else (None,))
        n_classes, labels = _classes(hf, tensors)
        return ViTConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            n_layers=hf.integer("num_hidden_layers"),
            d_ff=hf.integer("intermediate_size"),
            activation=hf.activation("hidden_act"),
            norm_eps=hf.number("layer_norm_eps"),
            image_size=_sides(hf, "image_size"),
            patch_size=_square(hf, "patch_size"),
            channels=hf.integer("num_channels"),
            n_classes=n_classes,
            qkv_bias=hf.flag("qkv_bias"),
            labels=labels,
        )

    hf_prefix = "vit."
    hf_anchor = "embeddings.cls_token"
    hf_blocks = ("encoder.layer.", "layers.")
    hf_other_names = (
        # transformers 5 renamed its modules; as it writes the older names, files have these or those
        (r"encoder\.layer\.(\d+)\.attention\.attention\.query", r"layers.\1.attention.q_proj"),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.key", r"layers.\1.attention.k_proj"),
        (r"encoder\.layer\.(\d+)\.attention\.attention\.value", r"layers.\1.attention.v_proj"),
        (r"encoder\.layer\.(\d+)\.attention\.output\.dense", r"layers.\1.attention.o_proj"),
        (r"encoder\.layer\.(\d+)\.intermediate\.dense", r"layers.\1.mlp.fc1"),
        (r"encoder\.layer\.(\d+)\.output\.dense", r"layers.\1.mlp.fc2"),
        (r"encoder\.layer\.", "layers."),
    )

    @staticmethod
    def hf_weights(config: ViTConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = {
            "embed.patch.weight": "embeddings.patch_embeddings.projection.weight",
            "embed.patch.bias": "embeddings.patch_embeddings.projection.bias",
            "embed.class": "embeddings.cls_token",
            "embed.position": "embeddings.position_embeddings",
            "norm": "layernorm",
            "head": "classifier",
        }
        block = {
            "q": "attention.attention.query",
            "k": "attention.attention.key",
            "v": "attention.attention.value",
            "o": "attention.output.dense",
            "fc1": "intermediate.dense",
            "fc2": "output.dense",
            "norm1": "layernorm_before",
            "norm2": "layernorm_after",
        }
        return map_names(ViT.weight_shapes(config), names, block, "encoder.layer.{}")

    PRESETS: ClassVar[dict[str, Callable[[int | None], ViTConfig]]] = {}


def _classes(hf: HFConfig, tensors: Tensors) -> tuple[int, tuple[str, ...]]:
    """-> (number of classes, 0 for a model without a classifier; their names).

    There are as many as id2label names, or as num_labels says, which makes names of its own where it is another number.
    """
    named, own = hf.get("id2label"), hf.get("num_labels") is not None or "num_labels" in hf.values
    good = named is None or (isinstance(named, dict) and set(named) == set(map(str, range(len(named)))))
    require(good, f"id2label = {shown(named)} must name each of its classes, 0 and on")
    n_named = 2 if named is None else len(named)
    n_classes = hf.integer("num_labels", at_least=0) if own else n_named
    head = tensors.find("classifier.weight")
    if "ViTForImageClassification" not in hf.architectures and (hf.architectures or head is None):
        return 0, ()
    if n_classes == 0 or head is None:
        return n_classes, ()
    require(
        head.shape[0] == n_classes,
        f"{head.path}: {head.name} is of {head.shape[0]} classes, but num_labels or id2label of {n_classes}",
    )
    if named is None or n_named != n_classes:
        return n_classes, tuple(f"LABEL_{i}" for i in range(n_classes))
    return n_classes, tuple(str(named[str(i)]) for i in range(n_classes))


def _sides(hf: HFConfig, key: str) -> tuple[int, int]:
    """Height and width, where one number stands for both."""
    value = hf.get(key)
    sides = tuple(value) if isinstance(value, list) else (value, value)
    good = len(sides) == 2 and all(type(side) is int and side >= 1 for side in sides)
    require(good, f"{key} = {shown(value)} must be an integer >= 1, or two")
    return sides


def _square(hf: HFConfig, key: str) -> int:
    """A side of what is as wide as it is high."""
    height, width = _sides(hf, key)
    require(height == width, f"{key} = {shown([height, width])} is not supported; only squares are")
    return height


def _preset(n_tokens: int | None, *, d_model: int, n_heads: int, n_layers: int, grid: int, n_classes: int) -> ViTConfig:
    """Patches of 16 pixels; `n_tokens` patches, one row of them when their number is no square."""
    tokens = grid * grid if n_tokens is None else n_tokens
    require(tokens >= 1, f"--tokens {tokens}: at least one")
    side = round(tokens**0.5)
    rows = side if side * side == tokens else 1
    return ViTConfig(
        d_model,
        n_heads,
        n_heads,
        n_layers,
        4 * d_model,
        "gelu",
        1e-12,
        (16 * rows, 16 * tokens // rows),
        16,
        n_classes=n_classes,
    )


ViT.PRESETS.update(
    {
        "vit-tiny": partial(_preset, d_model=192, n_heads=3, n_layers=12, grid=14, n_classes=1000),
        "vit-base": partial(_preset, d_model=768, n_heads=12, n_layers=12, grid=14, n_classes=1000),
    }
)
