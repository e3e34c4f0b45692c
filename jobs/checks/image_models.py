"""Small image models of every class that `convert` reads, and in words what is made of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import transformers

from astra_mpi.convert.hugging_face import convert

_DEPTH: dict[str, Any] = dict(hidden_size=24, num_attention_heads=2, num_hidden_layers=2)
_VIT = _DEPTH | dict(intermediate_size=40, image_size=12, patch_size=4)
_DINO = _DEPTH | dict(image_size=12, patch_size=4, mlp_ratio=2)
_TEXT = dict(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=5)
_TEXT |= dict(max_position_embeddings=4, eos_token_id=2, bos_token_id=1, pad_token_id=0)
_BOTH = dict(vision_config=_VIT, text_config=_TEXT)
_MAE = dict(decoder_hidden_size=8, decoder_num_attention_heads=2, decoder_num_hidden_layers=1)
#: model_type, class of transformers, settings
KINDS: list[tuple[str, str, dict[str, Any]]] = [
    ("vit", "ViTForImageClassification", _VIT),
    ("vit", "ViTModel", _VIT),
    ("deit", "DeiTForImageClassificationWithTeacher", _VIT),
    ("deit", "DeiTForImageClassification", _VIT),
    ("deit", "DeiTModel", _VIT),
    ("dinov2", "Dinov2ForImageClassification", _DINO),
    ("dinov2", "Dinov2Model", _DINO),
    ("dinov2", "Dinov2Model", _DINO | dict(use_swiglu_ffn=True)),
    ("dinov2_with_registers", "Dinov2WithRegistersForImageClassification", _DINO),
    ("dinov2_with_registers", "Dinov2WithRegistersModel", _DINO),
    ("clip", "CLIPModel", _BOTH | dict(projection_dim=16)),
    ("clip_vision_model", "CLIPVisionModelWithProjection", _VIT | dict(projection_dim=16)),
    ("clip_vision_model", "CLIPVisionModel", _VIT),
    ("siglip", "SiglipModel", _BOTH | dict(text_config=_TEXT | dict(projection_size=24))),
    ("siglip_vision_model", "SiglipVisionModel", _VIT),
    ("vit_mae", "ViTMAEForPreTraining", _VIT | _MAE | dict(decoder_intermediate_size=8)),
    ("vit_msn", "ViTMSNForImageClassification", _VIT),
    ("vit_msn", "ViTMSNModel", _VIT),
]
_POOLED = {
    "cls": "class token",
    "cls+mean": "class token beside the mean of the patches",
    "distilled": "class and distillation token, their two heads averaged",
    "mean": "mean of the patches",
}
_POOLERS = {"tanh": "tanh layer on the class token", "attention": "attention pooling over the patches"}


def config_of(kind: str, settings: dict[str, Any]) -> Any:
    """Of the model file that is made from a random model of this class."""
    class_: Any = getattr(transformers, kind)
    with tempfile.TemporaryDirectory() as folder:
        class_(class_.config_class(**settings)).save_pretrained(folder)
        return convert(Path(folder))[0].config


def answer(config: Any) -> str:
    """In words."""
    pooled = _POOLERS[config.pooler] if config.pooling == "pooler" else _POOLED[config.pooling]
    more = " (gated MLPs)" * config.gated
    if config.n_classes:
        return f"logits; {pooled}{more}"
    words = [pooled, *["projected"] * bool(config.projection), *["of length 1"] * config.normalize]
    return f"embedding; {', '.join(words)}{more}"
