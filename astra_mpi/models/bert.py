"""BERT (Devlin et al., arXiv 1810.04805) as a sentence encoder: post-LayerNorm blocks, pooled embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import ModelConfig, require
from astra_mpi.device.xp import module_of, take
from astra_mpi.models.batch import Batch, pack_ids
from astra_mpi.models.family import Family
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.partition import Layout

POOLINGS = ("mean", "cls", "pooler")


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """`ModelConfig` plus what a text encoder needs."""

    vocab_size: int
    max_positions: int  # longest sequence
    type_vocab: int = 2  # segment types; every token is of type 0
    pooling: str = "mean"  # mean over content tokens, first token, or tanh layer over the first token
    normalize: bool = False  # scale embeddings to length 1
    embedding_size: int = 0  # numbers kept of an embedding, after that; 0: all
    has_pooler: bool = False  # the checkpoint has the tanh layer

    family: ClassVar[str] = "bert"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_positions", "type_vocab"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"config: {name} = {value!r} must be a positive integer")
        require(
            self.pooling in POOLINGS, f"config: pooling '{self.pooling}' is unknown; use one of {', '.join(POOLINGS)}"
        )
        require(
            self.pooling != "pooler" or self.has_pooler,
            "config: pooling 'pooler' needs a checkpoint with pooler weights",
        )
        size = self.embedding_size
        good = type(size) is int and 0 <= size < self.d_model
        require(good, f"config: embedding_size = {size!r} is outside 0..{self.d_model - 1}")

    def as_dict(self) -> dict[str, Any]:
        """Without what is not set, so that models that earlier versions know keep their digest."""
        return {name: value for name, value in super().as_dict().items() if name != "embedding_size" or value}

    @property
    def n_class(self) -> int:
        """A pooled first token is replicated on every rank; otherwise it is an ordinary content token."""
        return 0 if self.pooling == "mean" else 1


class Bert(Family):
    """Embedding, pooling and head; the blocks are shared (`Block`)."""

    Config = BertConfig
    recipe = Recipe(norm_first=False)
    config: BertConfig

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None = None) -> Batch:
        """Token ids (B, T) and mask (B, T), 0 = drop -> packed batch. InputError on ids out of range or too long."""
        return pack_ids(inputs, mask, self.config.vocab_size, self.config.max_positions, self.config.n_class)

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank: word, position and type embedding, normalised."""
        assert batch.positions is not None
        starts = np.concatenate([[0], np.cumsum(batch.lengths + layout.n_class)[:-1]])
        token = starts[layout.row_sequence] + layout.row_token  # (n,) index into the packed batch
        x = take(self.w["embed.word"], batch.values[token]) + take(self.w["embed.position"], batch.positions[token])
        x += self.w["embed.type"][0]
        return self.kernels.layer_norm(x, self.w["embed.norm.weight"], self.w["embed.norm.bias"], self.config.norm_eps)

    def pool(self, x: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) -> this rank's share (B, D): sum of its content tokens, or of the averaged first token."""
        return layout.content_sums(x) if self.config.pooling == "mean" else layout.class_share(x)

    def final(self, x: np.ndarray) -> np.ndarray:
        """Post-LayerNorm blocks end normalised."""
        return x

    def head(self, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Shares summed over ranks (B, D) -> embeddings (B, D), or their first `embedding_size` numbers."""
        xp = module_of(pooled)
        if self.config.pooling == "mean":
            pooled = pooled / xp.asarray(np.maximum(lengths, 1)[:, None].astype(np.float32))
        elif self.config.pooling == "pooler":
            pooled = xp.tanh(self.product(pooled, "pooler.weight") + self.w["pooler.bias"])
        if self.config.normalize:
            pooled = pooled / xp.maximum(xp.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return xp.ascontiguousarray(pooled[:, : self.config.embedding_size or None])

    @staticmethod
    def weight_shapes(config: BertConfig) -> Shapes:
        d = config.d_model
        shapes: Shapes = {
            "embed.word": (config.vocab_size, d),
            "embed.position": (config.max_positions, d),
            "embed.type": (config.type_vocab, d),
            "embed.norm.weight": (d,),
            "embed.norm.bias": (d,),
        }
        if config.has_pooler:
            shapes |= {"pooler.weight": (d, d), "pooler.bias": (d,)}
        return shapes | block_shapes(config, Bert.recipe)

    reference = Reference(
        architectures=(
            *("BertModel", "BertForMaskedLM", "BertForPreTraining", "BertForNextSentencePrediction", "BertLMHeadModel"),
            *("BertForSequenceClassification", "BertForTokenClassification", "BertForQuestionAnswering"),
            "BertForMultipleChoice",
        ),
        fields=dict(
            vocab_size=30522,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            hidden_act="gelu",
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            max_position_embeddings=512,
            type_vocab_size=2,
            initializer_range=0.02,
            layer_norm_eps=1e-12,
            pad_token_id=0,
            use_cache=True,
            classifier_dropout=None,
            is_decoder=False,
            add_cross_attention=False,
            bos_token_id=None,
            eos_token_id=None,
            tie_word_embeddings=True,
        ),
        guarded={"is_causal": (False,)},
        harmless={
            **ENCODER,
            **dict.fromkeys(
                ("tie_word_embeddings", "id2label", "num_labels"), "belongs to a head that is not converted"
            ),
            "head_dim": "compared with other keys, but not used",
        },
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> BertConfig:
        """Hugging Face BERT config.json -> config. InputError on what is not supported."""
        d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
        return BertConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            n_layers=hf.integer("num_hidden_layers"),
            d_ff=hf.integer("intermediate_size"),
            activation=hf.activation("hidden_act"),
            norm_eps=hf.number("layer_norm_eps"),
            vocab_size=hf.integer("vocab_size"),
            max_positions=hf.integer("max_position_embeddings"),
            type_vocab=hf.integer("type_vocab_size"),
            has_pooler=tensors.has("pooler.dense.weight"),
        )

    hf_prefix = "bert."
    hf_anchor = "embeddings.LayerNorm.weight"
    hf_other_names = ((r"LayerNorm\.weight", "LayerNorm.gamma"), (r"LayerNorm\.bias", "LayerNorm.beta"))

    @staticmethod
    def hf_weights(config: BertConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = {
            "embed.word": "embeddings.word_embeddings.weight",
            "embed.position": "embeddings.position_embeddings.weight",
            "embed.type": "embeddings.token_type_embeddings.weight",
            "embed.norm": "embeddings.LayerNorm",
            "pooler": "pooler.dense",
        }
        block = {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "o": "attention.output.dense",
            "fc1": "intermediate.dense",
            "fc2": "output.dense",
            "norm1": "attention.output.LayerNorm",
            "norm2": "output.LayerNorm",
        }
        return map_names(Bert.weight_shapes(config), names, block, "encoder.layer.{}")

    PRESETS: ClassVar[dict[str, Callable[[int | None], BertConfig]]] = {}


def _preset(n_tokens: int | None, *, d_model: int, n_heads: int, n_layers: int) -> BertConfig:
    positions = 512 if n_tokens is None else n_tokens
    require(positions >= 1, f"--tokens {positions}: at least one")
    return BertConfig(d_model, n_heads, n_heads, n_layers, 4 * d_model, "gelu", 1e-12, 30522, max(512, positions))


Bert.PRESETS.update(
    {
        "bert-tiny": partial(_preset, d_model=128, n_heads=2, n_layers=2),
        "bert-base": partial(_preset, d_model=768, n_heads=12, n_layers=12),
    }
)
