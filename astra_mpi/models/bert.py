"""BERT (Devlin et al., arXiv 1810.04805) as an encoder of texts: post-LayerNorm blocks, embeddings or classes.

Models that differ from it in their names or in how their tokens are embedded are mapped to it (`models/encoders/`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.device.xp import module_of, take, to_host
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch, pack_ids, pack_types, split_types
from astra_mpi.models.bert_config import FURTHEST, BertConfig
from astra_mpi.models.classes import text_classes
from astra_mpi.models.family import Family
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.models.relative import by_distance

#: keys that only heads read, but for a classifier's (`text_classes`)
HEADLESS = dict.fromkeys(("tie_word_embeddings", "id2label", "num_labels"), "belongs to a head that is not converted")
#: keys that transformers asks models with rotary positions for, of others
OTHERS = {"num_heads": "belongs to other models' caches", "mlp_layer_types": "belongs to mixtures of experts"}
HEADLESS["head_dim"] = "compared with other keys, but not used"


class Bert(Family):
    """Embedding, pooling and head; the blocks are shared (`Block`)."""

    Config = BertConfig
    recipe = Recipe(norm_first=False)
    config: BertConfig

    @classmethod
    def recipe_of(cls, config: Any) -> Recipe:
        return replace(cls.recipe, relative=config.relative_buckets > 0)

    @cached_property
    def relative(self) -> np.ndarray | None:
        return by_distance(self.w["embed.relative"], FURTHEST) if self.config.relative_buckets else None

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None = None) -> Batch:
        """Token ids (B, T), or ids and types (B, T, 2), and mask (B, T), 0 = drop -> packed batch.

        InputError on ids or types out of range, and on sequences that are too long.
        """
        config = self.config
        ids, types = split_types(inputs, config.type_vocab)
        counts = config.pad_token >= 0 and ids.ndim == 2
        rows, first = (counted(ids, config.pad_token), 1) if counts else (None, 0)
        batch = pack_ids(ids, mask, config.vocab_size, config.max_positions, config.n_class, rows, first)
        return batch if types is None else replace(batch, types=pack_types(types, mask, config.type_vocab))

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank: word, position and type embedding, normalised, and brought to width D."""
        rows = batch.positions if batch.position_rows is None else batch.position_rows
        assert rows is not None
        token = self.tokens_here(batch, layout)
        x = take(self.w["embed.word"], batch.values[token]) + take(self.w["embed.position"], rows[token])
        if batch.types is not None:
            x += take(self.w["embed.type"], batch.types[token])
        elif self.config.type_vocab:
            x += self.w["embed.type"][0]
        x = self.kernels.layer_norm(x, self.w["embed.norm.weight"], self.w["embed.norm.bias"], self.config.norm_eps)
        return self.product(x, "embed.project.weight") + self.w["embed.project.bias"] if self.config.word_width else x

    def tokens_here(self, batch: Batch, layout: Layout) -> np.ndarray:
        """(n,) where the rows of this rank lie in the packed batch."""
        starts = np.concatenate([[0], np.cumsum(batch.lengths + layout.n_class)[:-1]])
        return starts[layout.row_sequence] + layout.row_token

    def pool(self, x: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) -> this rank's share (B, D): sum of its content tokens, of the averaged first token, or the last
        token if it is here."""
        config = self.config
        if config.pooling == "last":
            share = np.zeros((len(layout.counts), config.d_model), np.float32)
            sequences, rows = layout.last_rows
            if len(rows):
                share[sequences] = to_host(take(x, rows))
            return share
        if config.n_class:
            return layout.class_share(x)
        x = self.final(x)
        each = config.pooling == "pooler" and config.pooler_over == "each"
        return layout.content_sums(self._dense(x) if each else x)

    def final(self, x: np.ndarray) -> np.ndarray:
        """Post-LayerNorm blocks end normalised."""
        return x

    def head(self, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Shares summed over ranks (B, D) -> logits (B, classes); without a classifier embeddings (B, D), or the first
        `embedding_size` numbers of them."""
        xp, config = module_of(pooled), self.config
        if config.n_class or config.pooling == "last":
            pooled = self.final(pooled)
        else:
            pooled = pooled / xp.asarray(np.maximum(lengths, 1)[:, None].astype(np.float32))
        if config.pooling == "pooler" and config.pooler_over != "each":
            pooled = self._dense(pooled)
        if config.n_classes:
            return self.product(pooled, "head.weight") + self.w["head.bias"]
        for i, act in enumerate(config.dense_activations):
            pooled = self._activated(self.product(pooled, f"dense.{i}.weight"), self.w[f"dense.{i}.bias"], act)
        if config.normalize:
            pooled = pooled / xp.maximum(xp.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
        return xp.ascontiguousarray(pooled[:, : config.embedding_size or None])

    def _dense(self, x: np.ndarray) -> np.ndarray:
        """The layer before a classifier, (n, D) -> (n, D)."""
        config = self.config
        x = self._activated(self.product(x, "pooler.weight"), self.w["pooler.bias"], config.pooler_activation)
        if not config.pooler_norm:
            return x
        norm = self.w["pooler.norm.weight"], self.w["pooler.norm.bias"]
        return self.kernels.layer_norm(x, *norm, config.norm_eps)

    def _activated(self, x: np.ndarray, bias: np.ndarray, name: str) -> np.ndarray:
        """An activation of x (n, width) + bias."""
        if name == "identity":
            return x + bias
        return module_of(x).tanh(x + bias) if name == "tanh" else self.kernels.activate(x, bias, name)

    @staticmethod
    def weight_shapes(config: BertConfig) -> Shapes:
        d, width = config.d_model, config.word_width or config.d_model
        shapes: Shapes = {
            "embed.word": (config.vocab_size, width),
            "embed.position": (config.position_rows, width),
            "embed.type": (config.type_vocab, width),
            "embed.norm.weight": (width,),
            "embed.norm.bias": (width,),
        }
        if not config.type_vocab:
            del shapes["embed.type"]
        if config.word_width:
            shapes |= {"embed.project.weight": (width, d), "embed.project.bias": (d,)}
        if config.relative_buckets:
            shapes["embed.relative"] = (config.relative_buckets, config.n_heads)
        return shapes | head_shapes(config) | block_shapes(config, Bert.recipe_of(config))

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
            **HEADLESS,
        },
    )

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> BertConfig:
        """Hugging Face BERT config.json -> config. InputError on what is not supported."""
        return Bert.shape_of(hf, **classifier(hf, tensors, "pooler.dense.weight", "classifier.weight"))

    @staticmethod
    def shape_of(hf: HFConfig, **own: Any) -> BertConfig:
        """What models with BERT's keys have in common, and a model's `own` fields."""
        d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
        positions = own.pop("max_positions", None) or hf.integer("max_position_embeddings")
        types = own.pop("type_vocab", None)
        return BertConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            n_layers=hf.integer("num_hidden_layers"),
            d_ff=hf.integer("intermediate_size"),
            activation=hf.activation("hidden_act"),
            norm_eps=hf.number("layer_norm_eps"),
            vocab_size=hf.integer("vocab_size"),
            max_positions=positions,
            type_vocab=hf.integer("type_vocab_size") if types is None else types,
            **own,
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
            "embed.project": "embeddings_project",
            "pooler": "pooler.dense",
            "head": "classifier",
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


def head_shapes(config: BertConfig) -> Shapes:
    """Weights of the pooler and of the classifier."""
    d, shapes = config.d_model, dict[str, tuple[int, ...]]()
    if config.has_pooler:
        shapes |= {"pooler.weight": (d, d), "pooler.bias": (d,)}
    if config.pooler_norm:
        shapes |= {"pooler.norm.weight": (d,), "pooler.norm.bias": (d,)}
    if config.n_classes:
        shapes |= {"head.weight": (d, config.n_classes), "head.bias": (config.n_classes,)}
    for i, width in enumerate(config.dense_widths):
        shapes |= {f"dense.{i}.weight": (d, width), f"dense.{i}.bias": (width,)}
        d = width
    return shapes


def counted(ids: np.ndarray, pad_token: int) -> np.ndarray:
    """Token ids (B, T) -> positions (B, T) as RoBERTa has them: 1 for the first token other than `pad_token`, which
    itself is at 0, wherever it stands."""
    ids = np.asarray(ids)
    others = ids != pad_token
    return np.cumsum(others, axis=1) * others


def classifier(hf: HFConfig, tensors: Tensors, pooler: str, head: str) -> dict[str, Any]:
    """Fields of `BertConfig` of a checkpoint's pooler and classifier; both are named by their weights' tensors."""
    classes = text_classes(hf, tensors, head)
    return {**classes, "pooling": "pooler", "has_pooler": True} if classes else {"has_pooler": tensors.has(pooler)}


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
