"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head."""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.encoders.distilbert import DistilBert
from astra_mpi.models.encoders.electra import Electra
from astra_mpi.models.encoders.encoder import CausalEncoder, Encoder
from astra_mpi.models.encoders.eurobert import EuroBert
from astra_mpi.models.encoders.modernbert import ModernBert
from astra_mpi.models.encoders.mpnet import MPNet
from astra_mpi.models.encoders.nomic import NomicBert
from astra_mpi.models.encoders.roberta import Camembert, Roberta, XLMRoberta
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vit import ViT

#: family name (as in a model file) -> family
FAMILIES: dict[str, type[ViT] | type[Bert] | type[GPT2] | type[Llama]] = {
    family.Config.family: family for family in (ViT, Bert, GPT2, Llama)
}
_MAPPED: Any = (Roberta, XLMRoberta, Camembert, DistilBert, Electra, MPNet, NomicBert, ModernBert, EuroBert)
#: Hugging Face `model_type` -> what maps a checkpoint of it to one of the families
MODEL_TYPES: dict[str, Any] = {
    **FAMILIES,
    **{kind.model_type: kind for kind in _MAPPED},
}

__all__ = ["FAMILIES", "GPT2", "MODEL_TYPES", "Bert", "Llama", "ViT"]
