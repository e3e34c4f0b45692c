"""What the readers of image checkpoints share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.reference import ENCODER
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.classes import class_names, count_classes

#: besides `reference.HARMLESS`
HARMLESS = {**ENCODER, **dict.fromkeys(("tie_word_embeddings", "vocab_size"), "there are no words")}
GUARDED: dict[str, tuple[Any, ...]] = {"is_causal": (False,)}
#: names of a block's layers in ViT and those made from it
BLOCK = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "o": "attention.output.dense",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
NAMES = {
    "embed.patch": "embeddings.patch_embeddings.projection",
    "embed.class": "embeddings.cls_token",
    "embed.position": "embeddings.position_embeddings",
    "norm": "layernorm",
    "head": "classifier",
}


def shape_of(hf: HFConfig, d_ff: int | None = None) -> dict[str, Any]:
    """Fields of `ViTConfig` that all image encoders have; d_ff: where it is not `intermediate_size`."""
    d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
    return dict(
        d_model=d_model,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        n_layers=hf.integer("num_hidden_layers"),
        d_ff=hf.integer("intermediate_size") if d_ff is None else d_ff,
        activation=hf.activation("hidden_act"),
        norm_eps=hf.number("layer_norm_eps"),
        image_size=sides(hf, "image_size"),
        patch_size=square(hf, "patch_size"),
        channels=hf.integer("num_channels"),
    )


def vit_shape(hf: HFConfig, d_ff: int | None = None) -> dict[str, Any]:
    """The same of ViT and those made from it."""
    shape = shape_of(hf, d_ff)
    own = shape["d_model"] // shape["n_heads"]
    hf.only("head_dim", (own,) if "head_dim" in hf.values else (None,))
    return shape | {"qkv_bias": hf.flag("qkv_bias")}


def classes(
    hf: HFConfig, tensors: Tensors, classifiers: Sequence[str], head_name: str = "classifier.weight"
) -> tuple[int, tuple[str, ...]]:
    """-> (number of classes, 0 for a model without a classifier; their names).

    There are as many as id2label names, or as num_labels says, which makes names of its own where it is another number.
    classifiers: the classes of transformers that have such a head.
    """
    n_classes = count_classes(hf)
    head = tensors.find(head_name)
    if not set(classifiers) & set(hf.architectures) and (hf.architectures or head is None):
        return 0, ()
    if n_classes == 0 or head is None:
        return n_classes, ()
    require(
        head.shape[0] == n_classes,
        f"{head.path}: {head.name} is of {head.shape[0]} classes, but num_labels or id2label of {n_classes}",
    )
    return n_classes, class_names(hf, n_classes)


def sides(hf: HFConfig, key: str) -> tuple[int, int]:
    """Height and width, where one number stands for both."""
    value = hf.get(key)
    found = tuple(value) if isinstance(value, list) else (value, value)
    good = len(found) == 2 and all(type(side) is int and side >= 1 for side in found)
    require(good, f"{key} = {shown(value)} must be an integer >= 1, or two")
    return found


def square(hf: HFConfig, key: str) -> int:
    """A side of what is as wide as it is high."""
    height, width = sides(hf, key)
    require(height == width, f"{key} = {shown([height, width])} is not supported; only squares are")
    return height
