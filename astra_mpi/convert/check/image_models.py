"""Image models of transformers: which class answers for a folder, how it is asked, and with what folded into layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import load_object

#: whole models, whose answers are asked for beside a text
_PAIRS = ("clip", "siglip")


def class_name(folder: Path, config: Any) -> str:
    """Of the class of transformers that gives the answers of a folder converted to this config."""
    kind = load_object(folder / "config.json").get("model_type")
    if config.pooling == "distilled":
        return "DeiTForImageClassificationWithTeacher"
    if config.projection and kind == "clip_vision_model":
        return "CLIPVisionModelWithProjection"
    return "AutoModelForImageClassification" if config.n_classes else "AutoModel"


def asked(model: Any, images: Any, config: Any) -> tuple[Any, Any]:
    """Normalised images (B, C, height, width) -> (answers, hidden states after the last norm) of a model."""
    import torch

    kind, more = model.config.model_type, {}
    if kind == "vit_mae":  # all patches, in their order
        model.config.mask_ratio = 0.0
        n_patches = config.grid[0] * config.grid[1]
        more = {"noise": torch.arange(n_patches, dtype=images.dtype).expand(len(images), -1)}
    tower = model.vision_model if hasattr(model, "vision_model") else model.base_model
    inner = tower(images, **more)
    hidden = tower.post_layernorm(inner.last_hidden_state) if kind.startswith("clip") else inner.last_hidden_state
    if kind in _PAIRS:
        text = torch.ones(1, 2, dtype=torch.long)
        return model(pixel_values=images, input_ids=text).image_embeds, hidden
    if config.n_classes:
        return model(images).logits, hidden
    if config.projection:
        return model(images).image_embeds, hidden
    if config.pooling == "mean":
        return hidden.mean(dim=1), hidden
    return (inner.pooler_output if config.pooling == "pooler" else hidden[:, 0]), hidden


def fold(model: Any, config: Any) -> None:
    """Layer scales and positions of another size become part of the weights, as in a model file, before those are
    rounded. In place.
    """
    import torch

    for layer in model.modules():
        for name, at in (("layer_scale1", "attention"), ("layer_scale2", "mlp")):
            if hasattr(layer, name):
                scale = getattr(layer, name).lambda1.data
                last = [child for child in getattr(layer, at).modules() if isinstance(child, torch.nn.Linear)][-1]
                last.weight.data *= scale[:, None]
                last.bias.data *= scale
                scale[:] = 1
        if hasattr(layer, "interpolate_pos_encoding") and model.config.model_type.startswith("dinov2"):
            tokens = torch.zeros(1, 1 + config.grid[0] * config.grid[1], config.d_model)
            with torch.no_grad():
                positions = torch.nn.Parameter(layer.interpolate_pos_encoding(tokens, *config.image_size).clone())
            layer.position_embeddings = positions
            layer.interpolate_pos_encoding = lambda *_, layer=layer: layer.position_embeddings
