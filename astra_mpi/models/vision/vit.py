"""ViT (Dosovitskiy et al., arXiv 2010.11929): patches, a class token, pre-LayerNorm blocks.

The same with no class token or several, registers, a norm before the blocks, gated MLPs and other poolings is what the
checkpoints of `vision/` are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import ModelConfig, require
from astra_mpi.device.xp import beside, module_of, take
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.family import Family
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.models.vision import pooling, reading
from astra_mpi.models.vision.pooling import CLASSIFIED, POOLERS, POOLINGS


@dataclass(frozen=True)
class ViTConfig(ModelConfig):
    """`ModelConfig` plus what an image model needs."""

    image_size: tuple[int, int]  # height, width in pixels
    patch_size: int  # pixels
    channels: int = 3
    n_classes: int = 0  # 0: no classifier; the answer is then an embedding
    qkv_bias: bool = True
    labels: tuple[str, ...] = ()  # class names, or none
    # what files of earlier versions lack; written only where it differs from this
    class_tokens: int = 1  # tokens before the patches that have a position: the class token, DeiT's distillation token
    registers: int = 0  # tokens after those that have none
    patch_bias: bool = True
    embed_norm: bool = False  # a norm before the first block
    gated: bool = False  # MLPs with a gate
    pooling: str = "cls"  # what is classified or embedded (`vision.pooling.POOLINGS`)
    pooler: str = ""  # what the checkpoint has for pooling "pooler"
    projection: int = 0  # width of embeddings that are projected
    normalize: bool = False  # scale embeddings to length 1

    family: ClassVar[str] = "vit"

    def __post_init__(self) -> None:
        super().__post_init__()
        h, w = self.image_size
        require(
            1 <= self.patch_size <= min(h, w),
            f"config: image_size {h} x {w} is smaller than patch_size {self.patch_size}",
        )
        require(self.channels >= 1 and self.n_classes >= 0, "config: channels must be positive, n_classes not negative")
        require(
            len(self.labels) in (0, self.n_classes), f"config: {len(self.labels)} labels for {self.n_classes} classes"
        )

        self._check_pooling()

    def _check_pooling(self) -> None:
        n, pooling = self.class_tokens, self.pooling
        require(n in (0, 1, 2), f"config: class_tokens = {n!r} is outside 0..2")
        require(type(self.registers) is int and self.registers >= 0, f"config: registers = {self.registers!r}")
        require(type(self.projection) is int and self.projection >= 0, f"config: projection = {self.projection!r}")
        require(self.pooler in POOLERS, f"config: pooler '{self.pooler}' is unknown; use one of {', '.join(POOLERS)}")
        fits = [name for name in POOLINGS if name in CLASSIFIED] if self.n_classes else ["cls", "mean", "pooler"]
        require(pooling in fits, f"config: pooling '{pooling}' does not fit here; use one of {', '.join(fits)}")
        require(pooling != "pooler" or bool(self.pooler), "config: pooling 'pooler' needs a checkpoint with a pooler")
        needed = 0 if self.merged_heads else POOLINGS[pooling][0]
        require(n >= needed, f"config: pooling '{pooling}' needs {needed} class tokens, and this model has {n}")
        good = not self.projection or (pooling == "cls" and not self.n_classes)
        require(good, f"config: pooling '{pooling}' cannot be projected; what is, is the class token")
        require(
            not (self.normalize and self.n_classes), "config: normalize is for embeddings, and this model classifies"
        )

    def as_dict(self) -> dict[str, Any]:
        """Without what is as in earlier versions, so that their models keep their digest."""
        return {name: value for name, value in super().as_dict().items() if _LATER.get(name, ...) != value}

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row; pixels that are too few for one more are not looked at."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def n_class(self) -> int:
        """Tokens before the patches; every rank has a replica of each."""
        return self.class_tokens + self.registers

    @property
    def merged_heads(self) -> int:
        return self.n_heads if (self.pooling, self.pooler) == ("pooler", "attention") else 0

    @property
    def share_width(self) -> int:
        if self.merged_heads:
            return self.d_model + 2 * self.n_heads
        n_tokens, mean = POOLINGS[self.pooling]
        return (n_tokens + mean) * self.d_model


_LATER = {
    field.name: field.default
    for field in dataclasses.fields(ViTConfig)
    if field.name not in ("n_classes", "qkv_bias", "labels", "channels") and field.default is not dataclasses.MISSING
}


class ViT(Family):
    """Embedding and head; the blocks are shared (`Block`)."""

    heads = ("head.weight", "distilled.weight")
    Config = ViTConfig
    recipe = Recipe(norm_first=True)
    default_site = "normed"
    config: ViTConfig
    #: whether transformers takes images of any size, so that a folder's image processor decides
    takes_any_size: ClassVar[bool] = False

    @classmethod
    def recipe_of(cls, config: Any) -> Recipe:
        return Recipe(norm_first=True, gated=config.gated)

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
        """-> rows (n, D) of this rank: patch projection plus position; class tokens and registers in the class rows."""
        c, p = self.config.channels, self.config.patch_size
        gh, gw = self.config.grid
        patches = batch.values[:, :, : gh * p, : gw * p].reshape(len(batch.values), c, gh, p, gw, p)
        n_class, token = self.config.n_class, layout.row_token  # (n,), the first are the class tokens
        patch = np.maximum(token - n_class, 0)
        pixels = patches[layout.row_sequence, :, patch // gw, :, patch % gw, :].reshape(len(token), c * p * p)
        xp, dtype = module_of(self.w["norm.weight"]), self.w["norm.weight"].dtype
        x = self.product(xp.asarray(pixels, dtype), "embed.patch.weight")
        if self.config.patch_bias:
            x += self.w["embed.patch.bias"]
        x += take(self.w["embed.position"], patch + self.config.class_tokens)
        if len(layout.class_rows):
            x[beside(x, layout.class_rows)] = xp.concatenate([self.class_tokens] * len(layout.counts))
        if self.config.embed_norm:
            x = self.kernels.layer_norm(x, self.w["embed.norm.weight"], self.w["embed.norm.bias"], self.config.norm_eps)
        return x

    @cached_property
    def class_tokens(self) -> np.ndarray:
        """(n_class, D) what stands before the patches, positions added."""
        xp = module_of(self.w["norm.weight"])
        names = ("embed.class", "embed.distillation")[: self.config.class_tokens]
        rows = [xp.stack([self.w[name] for name in names])] if names else []
        rows = [tokens + take(self.w["embed.position"], np.arange(len(names))) for tokens in rows]
        if self.config.registers:
            rows.append(take(self.w["embed.registers"], np.arange(self.config.registers)))
        joined: np.ndarray = xp.concatenate(rows)
        return joined

    def pool(self, x: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) -> this rank's share (B, share_width) of the closing sum."""
        return pooling.share(self, x, layout)

    def final(self, x: np.ndarray) -> np.ndarray:
        """The norm after the last block, (n, D) -> (n, D)."""
        return self.kernels.layer_norm(x, self.w["norm.weight"], self.w["norm.bias"], self.config.norm_eps)

    def head(self, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Shares summed over ranks (B, share_width), or merged -> logits (B, classes) or embeddings."""
        return pooling.answer(self, pooled, lengths)

    @staticmethod
    def weight_shapes(config: ViTConfig) -> Shapes:
        d, (gh, gw) = config.d_model, config.grid
        shapes: Shapes = {
            "embed.patch.weight": (config.channels * config.patch_size**2, d),
            "embed.position": (config.class_tokens + gh * gw, d),
            "norm.weight": (d,),
            "norm.bias": (d,),
        }
        if config.patch_bias:
            shapes["embed.patch.bias"] = (d,)
        shapes |= dict.fromkeys(("embed.class", "embed.distillation")[: config.class_tokens], (d,))
        if config.registers:
            shapes["embed.registers"] = (config.registers, d)
        if config.embed_norm:
            shapes |= {"embed.norm.weight": (d,), "embed.norm.bias": (d,)}
        shapes |= pooling.head_shapes(config)
        return shapes | block_shapes(config, ViT.recipe_of(config), () if config.qkv_bias else "qkv")

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
        guarded=reading.GUARDED,
        harmless=reading.HARMLESS,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """Hugging Face ViT config.json -> config. InputError on what is not supported."""
        n_classes, labels = reading.classes(hf, tensors, ["ViTForImageClassification"])
        return ViTConfig(**reading.vit_shape(hf), n_classes=n_classes, labels=labels)

    hf_prefix = "vit."
    hf_anchor = "embeddings.cls_token"
    hf_blocks: ClassVar[tuple[str, ...]] = ("encoder.layer.", "layers.")
    hf_other_names: ClassVar[tuple[tuple[str, str], ...]] = (
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
        return map_names(ViT.weight_shapes(config), reading.NAMES, reading.BLOCK, "encoder.layer.{}")

    PRESETS: ClassVar[dict[str, Callable[[int | None], ViTConfig]]] = {}


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
