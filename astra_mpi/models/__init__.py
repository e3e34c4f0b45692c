"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head."""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.decoders import DECODERS
from astra_mpi.models.encoders import ENCODERS
from astra_mpi.models.encoders.encoder import CausalEncoder, Encoder
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vit import ViT

_OWN: Any = (ViT, Bert, GPT2, Llama, *DECODERS)
#: family name (as in a model file) -> family
FAMILIES: dict[str, Any] = {family.Config.family: family for family in (*_OWN, Encoder, CausalEncoder)}
#: Hugging Face `model_type` -> what maps a checkpoint of it to one of the families
MODEL_TYPES: dict[str, Any] = {family.Config.family: family for family in _OWN}
MODEL_TYPES |= {kind.model_type: kind for kind in ENCODERS}

__all__ = ["FAMILIES", "GPT2", "MODEL_TYPES", "Bert", "Llama", "ViT"]
