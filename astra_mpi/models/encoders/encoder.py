"""Encoders of texts with rotary positions: what their blocks are made of is in their config, pooling and classes are
BERT's. A class states a checkpoint (`nomic.py`, `modernbert.py`, ..), and a model file says "encoder"."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np

from astra_mpi.config import optional, require
from astra_mpi.device.xp import take
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.bert import Bert, head_shapes
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.models.rotary import Rotary, RotaryConfig

LINEARS = ("q", "k", "v", "o", "gate", "fc1", "fc2")


@dataclass(frozen=True)
class EncoderConfig(RotaryConfig, BertConfig):
    """`BertConfig` with rotary positions, and what blocks are made of; the MLP is gated."""

    _: KW_ONLY
    norm_first: bool = True  # blocks normalise before attention and MLP, and there is a norm at the end
    rms: bool = False  # RMSNorm, else LayerNorm
    output_norms: bool = optional(False)  # what attention and MLP give is normalised too
    qk_norm: str = optional("")  # queries and keys are normalised, see `Recipe`
    embed_norm: bool = optional(False)  # embeddings are normalised
    plain_start: bool = optional(False)  # the first block's attention takes its input as it is
    biased: tuple[str, ...] = optional(())  # linear layers of a block with a bias, of LINEARS
    norm_bias: bool = optional(True)  # the checkpoint has biases of norms, and of the pooler; else they are zeros
    pooler_bias: bool = optional(True)

    family: ClassVar[str] = "encoder"
    tied: ClassVar[bool] = False  # no head of words reads the embedding

    def __post_init__(self) -> None:
        super().__post_init__()
        plain = self.pad_token < 0 and not self.word_width
        require(plain, "config: pad_token and word_width are of encoders with learnt positions")
        require(set(self.biased) <= set(LINEARS), f"config: biased = {list(self.biased)} are not all linear layers")
        require(not self.plain_start or self.embed_norm, "config: plain_start without a norm of embeddings")

    @property
    def unbiased(self) -> tuple[str, ...]:
        """Linear layers without a bias."""
        return tuple(layer for layer in LINEARS if layer not in self.biased)


class Encoder(Rotary, Bert):
    """Embedding, norms and head of an `EncoderConfig`."""

    Config = EncoderConfig
    recipe = Recipe(norm_first=True, gated=True, rotary=True)
    config: EncoderConfig

    @classmethod
    def recipe_of(cls, config: Any) -> Recipe:
        return Recipe(
            norm_first=config.norm_first,
            rms=config.rms,
            gated=True,
            rotary=True,
            output_norms=config.output_norms,
            qk_norm=config.qk_norm,
        )

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank."""
        token = self.tokens_here(batch, layout)
        x = take(self.w["embed.word"], batch.values[token])
        if self.config.type_vocab:
            x += self.w["embed.type"][0] if batch.types is None else take(self.w["embed.type"], batch.types[token])
        return self._normalised(x, "embed.norm") if self.config.embed_norm else x

    def final(self, x: np.ndarray) -> np.ndarray:
        """The norm after the last block, if blocks begin with one."""
        return self._normalised(x, "norm") if self.config.norm_first else x

    def _normalised(self, x: np.ndarray, name: str) -> np.ndarray:
        weight, eps = self.w[f"{name}.weight"], self.config.norm_eps
        if self.config.rms:
            return self.kernels.rms_norm(x, weight, eps)
        return self.kernels.layer_norm(x, weight, self.w[f"{name}.bias"], eps)

    @staticmethod
    def weight_shapes(config: Any) -> Shapes:
        d = config.d_model
        shapes: Shapes = {"embed.word": (config.vocab_size, d)}
        if config.type_vocab:
            shapes["embed.type"] = (config.type_vocab, d)
        for name in ("embed.norm",) * config.embed_norm + ("norm",) * config.norm_first:
            shapes[f"{name}.weight"] = (d,)
            if not config.rms:
                shapes[f"{name}.bias"] = (d,)
        blocks = block_shapes(config, Encoder.recipe_of(config), config.unbiased)
        if config.plain_start:
            blocks = {name: shape for name, shape in blocks.items() if not name.startswith("blocks.0.norm1.")}
        return shapes | head_shapes(config) | blocks

    PRESETS: ClassVar = {}


@dataclass(frozen=True)
class CausalEncoderConfig(EncoderConfig):
    """Of a model whose tokens see themselves and the tokens before them."""

    family: ClassVar[str] = "causal_encoder"


class CausalEncoder(Encoder):
    """An encoder made of a decoder: its embedding is the last token's, as a rule."""

    Config = CausalEncoderConfig
    causal = True
    default_site = "kv"
