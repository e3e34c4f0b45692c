"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head.

Knows nothing of ranks but the layout that says which rows are here, and nothing of codes.
"""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.decoders import DECODERS
from astra_mpi.models.encoders import ENCODERS
from astra_mpi.models.encoders.encoder import CausalEncoder, Encoder
from astra_mpi.models.family import Family
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vision.readers import READERS
from astra_mpi.models.vision.vit import ViT

#: families whose names are model_types of Hugging Face too
_OWN: tuple[type[Family], ...] = (ViT, Bert, GPT2, Llama, *DECODERS)
_ALL: tuple[type[Family], ...] = (*_OWN, Encoder, CausalEncoder)
#: family name (as in a model file) -> family
FAMILIES: dict[str, type[Family]] = {family.Config.family: family for family in _ALL}
#: model_type of a Hugging Face config.json -> who reads such folders: a family, or a reader that makes one of it
CHECKPOINTS: dict[str, Any] = {family.Config.family: family for family in _OWN}
CHECKPOINTS |= {reader.model_type: reader for reader in ENCODERS} | READERS

__all__ = ["CHECKPOINTS", "FAMILIES", "GPT2", "Bert", "Llama", "ViT"]
