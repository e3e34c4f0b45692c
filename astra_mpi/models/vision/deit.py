"""DeiT (arXiv 2012.12877): a ViT with a distillation token, whose two heads are averaged."""

from __future__ import annotations

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.vision import reading
from astra_mpi.models.vision.vit import ViT, ViTConfig

_TEACHER = "DeiTForImageClassificationWithTeacher"


class DeiT(ViT):
    """Reader of such folders."""

    reference = Reference(
        architectures=("DeiTForImageClassification", _TEACHER, "DeiTForMaskedImageModeling", "DeiTModel"),
        fields=ViT.reference.fields,
        guarded=reading.GUARDED,
        harmless=reading.HARMLESS,
    )
    hf_prefix = "deit."

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> ViTConfig:
        """config.json -> config. InputError on what is not supported."""
        shape = reading.vit_shape(hf) | {"class_tokens": 2}
        if _TEACHER in hf.architectures or (not hf.architectures and tensors.has("cls_classifier.weight")):
            n_classes, labels = reading.classes(hf, tensors, [_TEACHER], "cls_classifier.weight")
            require(n_classes > 0, "num_labels or id2label leave the two heads no class")
            return ViTConfig(**shape, n_classes=n_classes, labels=labels, pooling="distilled")
        n_classes, labels = reading.classes(hf, tensors, ["DeiTForImageClassification"])
        if n_classes or not tensors.has("pooler.dense.weight"):
            return ViTConfig(**shape, n_classes=n_classes, labels=labels)
        hf.only("pooler_act", ("tanh",))
        hf.only("pooler_output_size", (None, 0, shape["d_model"]))
        return ViTConfig(**shape, pooling="pooler", pooler="tanh")

    @staticmethod
    def hf_weights(config: ViTConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = reading.NAMES | {"embed.distillation": "embeddings.distillation_token", "pooler": "pooler.dense"}
        if config.pooling == "distilled":
            names |= {"head": "cls_classifier", "distilled": "distillation_classifier"}
        return map_names(ViT.weight_shapes(config), names, reading.BLOCK, "encoder.layer.{}")
