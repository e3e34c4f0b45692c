"""DINOv2 (arXiv 2304.07193), with registers (arXiv 2309.16588) or without: layer scales, SwiGLU, images of any size."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.vision import reading
from astra_mpi.models.vision.positions import interpolated
from astra_mpi.models.vision.vit import ViT, ViTConfig

_FIELDS = {key: value for key, value in ViT.reference.fields.items() if key not in ("intermediate_size",)}
for _key in ("encoder_stride", "pooler_output_size", "pooler_act"):
    del _FIELDS[_key]
_FIELDS |= dict(
    mlp_ratio=4,
    layer_norm_eps=1e-6,
    patch_size=14,
    layerscale_value=1.0,
    drop_path_rate=0.0,
    use_swiglu_ffn=False,
    _out_features=None,
    _out_indices=None,
    apply_layernorm=True,
    reshape_hidden_states=True,
)
_BACKBONE: tuple[str, ...] = ("_out_features", "_out_indices", "out_features", "out_indices", "stage_names")
_BACKBONE += ("apply_layernorm", "reshape_hidden_states")
_HARMLESS = reading.HARMLESS | dict.fromkeys(_BACKBONE, "of backbones of other models")
_HARMLESS |= {"layerscale_value": "where training begins", "drop_path_rate": "acts in training only"}


class Dinov2(ViT):
    """Reader of such folders. Layer scales become part of the layers before them."""

    takes_any_size = True
    antialias: ClassVar[bool] = False  # in the interpolation of positions
    classifier: ClassVar[str] = "Dinov2ForImageClassification"
    reference = Reference(
        architectures=("Dinov2ForImageClassification", "Dinov2Model"),
        fields=_FIELDS | {"use_mask_token": True},
        guarded=reading.GUARDED,
        harmless=_HARMLESS | {"use_mask_token": "of training on masked images"},
    )
    hf_prefix = "dinov2."
    hf_other_names: ClassVar[tuple[tuple[str, str], ...]] = (
        # the names of modules in transformers 5, which writes the older ones
        (r"attention\.attention\.query", "attention.q_proj"),
        (r"attention\.attention\.key", "attention.k_proj"),
        (r"attention\.attention\.value", "attention.v_proj"),
        (r"attention\.output\.dense", "attention.o_proj"),
    )

    @classmethod
    def from_hf(cls, hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        gated, ratio = hf.flag("use_swiglu_ffn"), hf.number("mlp_ratio")
        d_ff = int(hf.integer("hidden_size") * ratio)
        if gated:
            d_ff = (int(d_ff * 2 / 3) + 7) // 8 * 8
            hf.read.add("hidden_act")
        n_classes, labels = reading.classes(hf, tensors, [cls.classifier])
        headless = cls.classifier in hf.architectures and not n_classes
        require(not headless, "num_labels or id2label leave the head no class")
        shape = reading.vit_shape(hf, d_ff) | ({"activation": "silu"} if gated else {})
        height, width = shape["image_size"]
        n = height // shape["patch_size"]
        found = tensors.find("embeddings.position_embeddings")
        fits = height == width and (found is None or found.shape[1] == 1 + n * n)
        require(fits, f"image_size = {[height, width]} is not that of the trained positions, which must be a square")
        return ViTConfig(
            **shape,
            n_classes=n_classes,
            labels=labels,
            gated=gated,
            registers=cls.registers(hf),
            pooling="cls+mean" if n_classes else "cls",
        )

    @staticmethod
    def registers(hf: HFConfig) -> int:
        """How many there are."""
        return 0

    @classmethod
    def hf_weights(cls, config: ViTConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = reading.NAMES | {"embed.registers": "embeddings.register_tokens"}
        block = reading.BLOCK | {"norm1": "norm1", "norm2": "norm2"}
        block |= {"fc1": "mlp.weights_in", "gate": "mlp.weights_in"} if config.gated else {"fc1": "mlp.fc1"}
        block["fc2"] = "mlp.weights_out" if config.gated else "mlp.fc2"
        sources = map_names(ViT.weight_shapes(config), names, block, "encoder.layer.{}")
        position = partial(interpolated, grid=config.grid, n_class=1, antialias=cls.antialias)
        sources["embed.position"] = sources["embed.position"]._replace(remake=position)
        for name, source in sources.items():
            layer = name.split(".")[2] if name.startswith("blocks.") else ""
            prefix = source.name.split(".")[:3]  # encoder.layer.i
            if layer in ("o", "fc2"):
                scale = "layer_scale1" if layer == "o" else "layer_scale2"
                sources[name] = source._replace(times=".".join([*prefix, scale, "lambda1"]))
            elif config.gated and layer in ("gate", "fc1"):
                sources[name] = source._replace(part=("gate", "fc1").index(layer), n_parts=2)
        return sources


class Dinov2WithRegisters(Dinov2):
    """Reader of such folders."""

    antialias = True
    classifier = "Dinov2WithRegistersForImageClassification"
    reference = Reference(
        architectures=("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel"),
        fields=_FIELDS | {"patch_size": 16, "num_register_tokens": 4},
        guarded=reading.GUARDED,
        harmless=_HARMLESS,
    )
    hf_prefix = "dinov2_with_registers."

    @staticmethod
    def registers(hf: HFConfig) -> int:
        return hf.integer("num_register_tokens", at_least=0)
