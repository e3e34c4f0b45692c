"""Decoders that were made into embedders, in folders of sentence-transformers: their blocks without a head, both ways
where the model looks both ways."""

from __future__ import annotations

import dataclasses
from typing import Any

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.decoders.gemma import Gemma3
from astra_mpi.models.decoders.qwen import Qwen2, Qwen3
from astra_mpi.models.encoders.encoder import CausalEncoderConfig, Encoder, EncoderConfig
from astra_mpi.models.recipe import Shapes

_BOTH_WAYS = "use_bidirectional_attention"


def _embedder(decoder: Any) -> Any:
    """What maps a checkpoint of this decoder's model_type to an encoder."""

    class Embedder(decoder):
        Config = EncoderConfig

        @classmethod
        def weight_shapes(cls, config: EncoderConfig) -> Shapes:
            return Encoder.weight_shapes(config)

        @staticmethod
        def from_hf(hf: HFConfig, tensors: Tensors) -> EncoderConfig:
            return _as_encoder(decoder, hf, tensors)

    return Embedder


def _as_encoder(decoder: Any, hf: HFConfig, tensors: Tensors) -> EncoderConfig:
    """The decoder's config as that of an encoder. InputError on what is not supported."""
    both_ways = hf.reference.has(_BOTH_WAYS) and bool(hf.get(_BOTH_WAYS))
    # the head is left out, whether there is one or not
    hf.values |= {"tie_word_embeddings": True} | ({_BOTH_WAYS: False} if both_ways else {})
    hf.get("sliding_window")  # which may be there and switched off
    found = decoder.from_hf(hf, tensors)
    recipe = decoder.recipe_of(found)
    require(recipe.gated and recipe.rms and not recipe.parallel, f"a {found.family} model is not known as an embedder")
    known = {field.name for field in dataclasses.fields(EncoderConfig)}
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found) if field.name in known}
    if both_ways:  # on each side half of the window, and one more
        fields["windows"] = tuple(size and size // 2 + 1 for size in found.windows)
    kind = EncoderConfig if both_ways else CausalEncoderConfig
    parts = {"rms": True, "qk_norm": recipe.qk_norm, "output_norms": recipe.output_norms}
    return kind(**fields, **parts, type_vocab=0)


#: Hugging Face `model_type` of a decoder -> what maps an embedder made of it
EMBEDDERS = {decoder.Config.family: _embedder(decoder) for decoder in (Qwen2, Qwen3, Gemma3)}
