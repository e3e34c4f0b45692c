"""Decoders that are a recipe of parts and a mapping of names, a file for each or for each kin."""

from __future__ import annotations

from typing import Any

from astra_mpi.models.decoders.gemma import Gemma, Gemma2, Gemma3
from astra_mpi.models.decoders.gpt_neox import GPTNeoX
from astra_mpi.models.decoders.granite import Granite
from astra_mpi.models.decoders.mistral import Mistral
from astra_mpi.models.decoders.olmo2 import Olmo2
from astra_mpi.models.decoders.opt import OPT
from astra_mpi.models.decoders.phi3 import Phi3
from astra_mpi.models.decoders.qwen import Qwen2, Qwen3
from astra_mpi.models.decoders.smollm3 import SmolLM3
from astra_mpi.models.decoders.stablelm import StableLM
from astra_mpi.models.decoders.starcoder2 import Starcoder2

DECODERS: tuple[Any, ...] = (
    *(Mistral, Qwen2, Qwen3, Gemma, Gemma2, Gemma3, Phi3, Granite),
    *(SmolLM3, Olmo2, GPTNeoX, OPT, Starcoder2, StableLM),
)
