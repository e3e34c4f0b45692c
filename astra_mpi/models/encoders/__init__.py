"""Text encoders that are mapped to a family that computes as they do, BERT's or that of `encoder.py`.

A class states what transformers reads of a `model_type`, and where a checkpoint keeps what. None of them is seen once a
model file is written.
"""

from typing import Any

from astra_mpi.models.encoders.distilbert import DistilBert
from astra_mpi.models.encoders.electra import Electra
from astra_mpi.models.encoders.eurobert import EuroBert
from astra_mpi.models.encoders.modernbert import ModernBert
from astra_mpi.models.encoders.mpnet import MPNet
from astra_mpi.models.encoders.nomic import NomicBert
from astra_mpi.models.encoders.roberta import Camembert, Roberta, XLMRoberta

ENCODERS: tuple[Any, ...] = (
    Roberta, XLMRoberta, Camembert, DistilBert, Electra, MPNet, NomicBert, ModernBert, EuroBert,
)  # fmt: skip
