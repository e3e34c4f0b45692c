"""MPNet (arXiv 2004.09297): BERT with positions counted as RoBERTa does and biases of scores by distance, no types."""

from __future__ import annotations

from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.bert import Bert, classifier
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.encoders.roberta import classifier_sources, counted_rows
from astra_mpi.models.hf import Source, map_names

_HEADS = "Model ForMaskedLM ForSequenceClassification ForTokenClassification ForQuestionAnswering ForMultipleChoice"
#: before which no position counts, and number of buckets: constants of transformers' code
_PAD, _BUCKETS = 1, 32
_NOT = ("type_vocab_size", "use_cache", "classifier_dropout", "is_decoder", "add_cross_attention")


class MPNet(Bert):
    model_type: ClassVar[str] = "mpnet"
    reference = Reference(
        architectures=tuple(f"MPNet{head}" for head in _HEADS.split()),
        fields={
            **{key: value for key, value in Bert.reference.fields.items() if key not in _NOT},
            **dict(vocab_size=30527, pad_token_id=1, bos_token_id=0, eos_token_id=2, relative_attention_num_buckets=32),
        },
        guarded=Bert.reference.guarded,
        harmless=Bert.reference.harmless,
    )
    hf_prefix = "mpnet."

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> BertConfig:
        """config.json -> config. InputError on what is not supported."""
        rows = hf.integer("max_position_embeddings")
        require(rows > _PAD + 1, f"max_position_embeddings = {rows} leaves no position after the padding's, {_PAD}")
        hf.only("relative_attention_num_buckets", (_BUCKETS,))
        own = dict(max_positions=rows - _PAD - 1, type_vocab=0, pad_token=_PAD, relative_buckets=_BUCKETS)
        return Bert.shape_of(hf, **own, **classifier(hf, tensors, "pooler.dense.weight", "classifier.out_proj.weight"))

    @staticmethod
    def hf_weights(config: BertConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = {
            "embed.word": "embeddings.word_embeddings.weight",
            "embed.position": "embeddings.position_embeddings.weight",
            "embed.norm": "embeddings.LayerNorm",
            "embed.relative": "encoder.relative_attention_bias.weight",
            "pooler": "pooler.dense",
            "head": "classifier.out_proj",
        }
        block = {name: f"attention.attn.{name}" for name in "qkvo"}
        block |= {"fc1": "intermediate.dense", "fc2": "output.dense"}
        block |= {"norm1": "attention.LayerNorm", "norm2": "output.LayerNorm"}
        sources = map_names(Bert.weight_shapes(config), names, block, "encoder.layer.{}")
        own = classifier_sources(config, "classifier.dense", "classifier.out_proj")
        return counted_rows(sources, config) | own
