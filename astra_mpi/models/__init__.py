"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head."""

from __future__ import annotations

from astra_mpi.models.bert import Bert
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vit import ViT

#: family name (as in a model file and in a Hugging Face `model_type`) -> family
FAMILIES: dict[str, type[ViT] | type[Bert] | type[GPT2] | type[Llama]] = {
    family.Config.family: family for family in (ViT, Bert, GPT2, Llama)
}

__all__ = ["FAMILIES", "GPT2", "Bert", "Llama", "ViT"]
