"""Model families. A family is one file: config, weights, embedding, block recipe, pooling and head."""

from __future__ import annotations

from typing import Any

from astra_mpi.models.bert import Bert
from astra_mpi.models.encoders.distilbert import DistilBert
from astra_mpi.models.encoders.electra import Electra
from astra_mpi.models.encoders.roberta import Camembert, Roberta, XLMRoberta
from astra_mpi.models.gpt2 import GPT2
from astra_mpi.models.llama import Llama
from astra_mpi.models.vit import ViT

#: family name (as in a model file) -> family
FAMILIES: dict[str, type[ViT] | type[Bert] | type[GPT2] | type[Llama]] = {
    family.Config.family: family for family in (ViT, Bert, GPT2, Llama)
}
#: Hugging Face `model_type` -> what maps a checkpoint of it to one of the families
MODEL_TYPES: dict[str, Any] = {
    **FAMILIES,
    **{kind.model_type: kind for kind in (Roberta, XLMRoberta, Camembert, DistilBert, Electra)},
}

__all__ = ["FAMILIES", "GPT2", "MODEL_TYPES", "Bert", "Llama", "ViT"]
