"""Encoders of ViT's own shape, trained otherwise: masked autoencoders (arXiv 2111.06377) and MSN (arXiv 2204.07141)."""

from __future__ import annotations

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.vision import reading
from astra_mpi.models.vision.vit import ViT, ViTConfig

_POOLER = ("encoder_stride", "pooler_output_size", "pooler_act")
_FIELDS = {key: value for key, value in ViT.reference.fields.items() if key not in _POOLER}


class ViTMAE(ViT):
    """Reader of such folders: the encoder, which here sees all patches."""

    reference = Reference(
        architectures=("ViTMAEForPreTraining", "ViTMAEModel"),
        fields=_FIELDS
        | dict(
            decoder_num_attention_heads=16,
            decoder_hidden_size=512,
            decoder_num_hidden_layers=8,
            decoder_intermediate_size=2048,
            mask_ratio=0.75,
            norm_pix_loss=False,
        ),
        guarded=reading.GUARDED,
        harmless=reading.HARMLESS
        | dict.fromkeys(
            (
                *("decoder_num_attention_heads", "decoder_hidden_size", "decoder_num_hidden_layers"),
                *("decoder_intermediate_size", "norm_pix_loss", "id2label", "num_labels"),
            ),
            "of a decoder or head that is left out",
        )
        | {"mask_ratio": "no patch is masked here"},
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        return ViTConfig(**reading.vit_shape(hf))


class ViTMSN(ViT):
    """Reader of such folders."""

    reference = Reference(
        architectures=("ViTMSNForImageClassification", "ViTMSNModel"),
        fields=_FIELDS | {"layer_norm_eps": 1e-6},
        guarded=reading.GUARDED,
        harmless=reading.HARMLESS,
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        n_classes, labels = reading.classes(hf, tensors, ["ViTMSNForImageClassification"])
        return ViTConfig(**reading.vit_shape(hf), n_classes=n_classes, labels=labels)
