"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head."""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.decoders import DECODERS
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vit import ViT

#: family name (as in a model file and in a Hugging Face `model_type`) -> family
_ALL: tuple[Any, ...] = (ViT, Bert, GPT2, Llama, *DECODERS)
FAMILIES: dict[str, Any] = {family.Config.family: family for family in _ALL}

__all__ = ["FAMILIES", "GPT2", "Bert", "Llama", "ViT"]
