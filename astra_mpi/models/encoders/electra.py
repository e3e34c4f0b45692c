"""ELECTRA (arXiv 2003.10555): BERT whose embeddings may be narrower than its blocks; its classifier ends in GELU."""

from __future__ import annotations

from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.bert import Bert, classifier
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.encoders.roberta import classifier_sources
from astra_mpi.models.hf import Source

_HEADS = "Model ForMaskedLM ForCausalLM ForPreTraining ForSequenceClassification ForTokenClassification"
_HEADS += " ForQuestionAnswering ForMultipleChoice"
_SUMMARY = dict(summary_type="first", summary_use_proj=True, summary_activation="gelu", summary_last_dropout=0.1)


class Electra(Bert):
    model_type: ClassVar[str] = "electra"
    reference = Reference(
        architectures=tuple(f"Electra{head}" for head in _HEADS.split()),
        fields={
            **Bert.reference.fields,
            **dict(embedding_size=128, hidden_size=256, num_attention_heads=4, intermediate_size=1024, **_SUMMARY),
        },
        guarded=Bert.reference.guarded,
        harmless={**Bert.reference.harmless, "summary_last_dropout": "belongs to a head that is not converted"},
    )
    hf_prefix = "electra."

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> BertConfig:
        """config.json -> config. InputError on what is not supported."""
        width, d_model = hf.integer("embedding_size"), hf.integer("hidden_size")
        heads = ("", "classifier.out_proj.weight")
        own = {"word_width": 0 if width == d_model else width, "pooler_activation": "gelu"}
        return Bert.shape_of(hf, **own, **classifier(hf, tensors, *heads))

    @staticmethod
    def hf_weights(config: BertConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        return Bert.hf_weights(config) | classifier_sources(config, "classifier.dense", "classifier.out_proj")
