"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head."""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vision.readers import READERS
from astra_mpi.models.vit import ViT

#: family name (as in a model file) -> family
FAMILIES: dict[str, type[ViT] | type[Bert] | type[GPT2] | type[Llama]] = {
    family.Config.family: family for family in (ViT, Bert, GPT2, Llama)
}
#: model_type of a Hugging Face config.json -> who reads such folders: a family, or a reader that makes one of it
CHECKPOINTS: dict[str, Any] = {**FAMILIES, **READERS}

__all__ = ["CHECKPOINTS", "FAMILIES", "GPT2", "Bert", "Llama", "ViT"]
