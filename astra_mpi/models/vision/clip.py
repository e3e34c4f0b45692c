"""The image towers of CLIP (arXiv 2103.00020) and SigLIP (arXiv 2303.15343), alone or out of the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.vision import reading
from astra_mpi.models.vision.vit import ViT, ViTConfig

_BLOCK = {name: f"self_attn.{name}_proj" for name in "qkv"} | {"o": "self_attn.out_proj"}
_BLOCK |= {"fc1": "mlp.fc1", "fc2": "mlp.fc2", "norm1": "layer_norm1", "norm2": "layer_norm2"}
_NAMES = {
    "embed.patch": "embeddings.patch_embedding",
    "embed.class": "embeddings.class_embedding",
    "embed.position": "embeddings.position_embedding.weight",
    "embed.norm": "pre_layrnorm",  # as it is written there
    "norm": "post_layernorm",
    "projection": "visual_projection",
    "pooler.probe": "head.probe",
    "pooler.o": "head.attention.out_proj",
    "pooler.norm": "head.layernorm",
    "pooler.fc1": "head.mlp.fc1",
    "pooler.fc2": "head.mlp.fc2",
    **{f"pooler.{name}": "head.attention.in_proj" for name in "qkv"},
}
_HARMLESS = reading.HARMLESS | dict.fromkeys(("id2label", "num_labels"), "there are no classes")
_HARMLESS |= dict.fromkeys(("initializer_factor", "init_std"), "acts in training only")
_HARMLESS |= {"head_dim": "compared with other keys, not used"}
_OTHER_TOWER = "of the text tower, or of what compares it with images, which are left out"


class ClipVision(ViT):
    """Reader of folders of CLIP's image tower."""

    reference = Reference(
        architectures=("CLIPVisionModel", "CLIPVisionModelWithProjection"),
        fields=dict(
            hidden_size=768,
            intermediate_size=3072,
            projection_dim=512,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_channels=3,
            image_size=224,
            patch_size=32,
            hidden_act="quick_gelu",
            layer_norm_eps=1e-5,
            attention_dropout=0.0,
            initializer_range=0.02,
            initializer_factor=1.0,
        ),
        guarded=reading.GUARDED,
        harmless=_HARMLESS,
    )
    hf_prefix = "vision_model."
    hf_anchor = "embeddings.patch_embedding.weight"
    hf_blocks: ClassVar[tuple[str, ...]] = ("encoder.layers.",)
    hf_other_names: ClassVar[tuple[tuple[str, str], ...]] = ()

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        whole = "CLIPVisionModelWithProjection" in hf.architectures
        projected = whole or (not hf.architectures and tensors.has("visual_projection.weight"))
        projection = hf.integer("projection_dim")
        return ViTConfig(**tower(hf), patch_bias=False, embed_norm=True, projection=projection if projected else 0)

    @staticmethod
    def hf_weights(config: ViTConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        sources = map_names(ViT.weight_shapes(config), _NAMES, _BLOCK, "encoder.layers.{}")
        for part, layer in enumerate("qkv"):
            for kind in ("weight", "bias"):
                if f"pooler.{layer}.{kind}" in sources:
                    sources[f"pooler.{layer}.{kind}"] = Source(f"head.attention.in_proj_{kind}", part, 3)
        return sources


class SiglipVision(ClipVision):
    """Reader of folders of SigLIP's image tower: no class token; a probe attends to the patches."""

    reference = Reference(
        architectures=("SiglipVisionModel",),
        fields=dict(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_channels=3,
            image_size=224,
            patch_size=16,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
            attention_dropout=0.0,
            vision_use_head=True,
        ),
        guarded=reading.GUARDED,
        harmless=_HARMLESS,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        hf.only("vision_use_head", (True,), ": without its head the model gives no embedding")
        return ViTConfig(**tower(hf), class_tokens=0, pooling="pooler", pooler="attention")


def tower(hf: HFConfig) -> dict[str, Any]:
    """Fields of `ViTConfig` of either tower, whose images are squares."""
    for key in ("image_size", "patch_size"):
        hf.integer(key)
    return reading.shape_of(hf)


class _Whole:
    """What readers of both towers share: vision_config is the image tower's config.json."""

    tower: ClassVar[type[ClipVision]]
    reference: ClassVar[Reference]

    @classmethod
    def vision(cls, hf: HFConfig, tensors: Tensors, **beside: Any) -> ViTConfig:
        """The image tower's config; beside: settings that it has from the model around it."""
        given = hf.get("vision_config") or {}
        if "vision_config_dict" in cls.reference.guarded:  # of older releases; it takes the other's place
            older = hf.get("vision_config_dict")
            given = given if older is None else older
        require(isinstance(given, Mapping), f"vision_config = {shown(given)} must be an object")
        try:
            inner = HFConfig({**given, "architectures": None, **beside}, cls.tower.reference)
            config = cls.tower.from_hf(inner, tensors)
            inner.check_rest()
        except InputError as exc:
            raise InputError(f"vision_config: {exc}") from exc
        hf.notes += inner.notes
        hf.assumed += inner.assumed
        return config


class Clip(_Whole, ClipVision):
    """Reader of folders of the whole CLIP: images become what its `image_embeds` are, of length 1."""

    tower = ClipVision
    reference = Reference(
        architectures=("CLIPModel",),
        fields=dict(
            text_config=None,
            vision_config=None,
            projection_dim=512,
            logit_scale_init_value=2.6592,
            initializer_factor=1.0,
        ),
        guarded={"vision_config_dict": ()},
        harmless=_HARMLESS | dict.fromkeys(("text_config", "text_config_dict", "logit_scale_init_value"), _OTHER_TOWER),
    )

    @classmethod
    def from_hf(cls, hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        size = hf.integer("projection_dim")
        return _embedding(cls.vision(hf, tensors), projection=size)


class Siglip(_Whole, SiglipVision):
    """Reader of folders of the whole SigLIP: images become what its `image_embeds` are, of length 1."""

    tower = SiglipVision
    reference = Reference(
        architectures=("SiglipModel",),
        fields=dict(text_config=None, vision_config=None, initializer_factor=1.0),
        harmless=_HARMLESS | {"text_config": _OTHER_TOWER} | {"initializer_factor": "acts in training only"},
    )

    @classmethod
    def from_hf(cls, hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        return _embedding(cls.vision(hf, tensors))


def _embedding(config: ViTConfig, **changes: Any) -> ViTConfig:
    return ViTConfig(**{**vars(config), **changes, "normalize": True})
