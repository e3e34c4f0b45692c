"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head.

Knows nothing of ranks but the layout that says which rows are here, and nothing of codes.
"""

from __future__ import annotations

from astra_mpi.models.bert import Bert
from astra_mpi.models.family import Family
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vit import ViT

#: family name (as in a model file and in a Hugging Face `model_type`) -> family
FAMILIES: dict[str, type[Family]] = {family.Config.family: family for family in (ViT, Bert, GPT2, Llama)}

__all__ = ["FAMILIES", "GPT2", "Bert", "Llama", "ViT"]
