"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head.

Knows nothing of ranks but the layout that says which rows are here, and nothing of codes.
"""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.decoders import DECODERS
from astra_mpi.models.family import Family
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vision.readers import READERS
from astra_mpi.models.vision.vit import ViT

#: family name (as in a model file) -> family
FAMILIES: dict[str, type[Family]] = {family.Config.family: family for family in (ViT, Bert, GPT2, Llama, *DECODERS)}
#: model_type of a Hugging Face config.json -> who reads such folders: a family, or a reader that makes one of it
CHECKPOINTS: dict[str, Any] = {**FAMILIES, **READERS}

__all__ = ["CHECKPOINTS", "FAMILIES", "GPT2", "Bert", "Llama", "ViT"]
