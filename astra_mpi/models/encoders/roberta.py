"""RoBERTa (arXiv 1907.11692), XLM-RoBERTa (1911.02116) and CamemBERT (1911.03894): BERT, positions counted from the
padding token's id on, and a classifier with a dense layer of its own."""

from __future__ import annotations

from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.bert import HEADLESS, Bert, classifier
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.hf import Source

_HEADS = "Model ForMaskedLM ForCausalLM ForSequenceClassification ForTokenClassification ForQuestionAnswering"
_HEADS += " ForMultipleChoice"


def _reference(name: str, vocab_size: int) -> Reference:
    """Of the classes of this name, whose fields and their defaults are BERT's as a rule."""
    own = dict(vocab_size=vocab_size, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    return Reference(
        architectures=tuple(f"{name}{head}" for head in _HEADS.split()),
        fields={**Bert.reference.fields, **own},
        guarded=Bert.reference.guarded,
        harmless={
            **ENCODER,
            **HEADLESS,
        },
    )


class Roberta(Bert):
    model_type: ClassVar[str] = "roberta"
    reference = _reference("Roberta", 50265)
    hf_prefix = "roberta."

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> BertConfig:
        """config.json -> config. InputError on what is not supported."""
        pad, rows = hf.integer("pad_token_id", at_least=0), hf.integer("max_position_embeddings")
        require(
            rows > pad + 1,
            f"max_position_embeddings = {rows} leaves no position after pad_token_id = {pad}, from which they are"
            " counted",
        )
        heads = ("pooler.dense.weight", "classifier.out_proj.weight")
        return Bert.shape_of(hf, max_positions=rows - pad - 1, pad_token=pad, **classifier(hf, tensors, *heads))

    @staticmethod
    def hf_weights(config: BertConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        sources = counted_rows(Bert.hf_weights(config), config)
        return sources | classifier_sources(config, "classifier.dense", "classifier.out_proj")


class XLMRoberta(Roberta):
    model_type = "xlm-roberta"
    reference = _reference("XLMRoberta", 30522)


class Camembert(Roberta):
    model_type = "camembert"
    reference = _reference("Camembert", 30522)


def counted_rows(sources: dict[str, Source], config: BertConfig) -> dict[str, Source]:
    """The position embedding from the padding token's row on: those before it no token takes."""
    rows, n_rows = slice(config.pad_token, None), config.pad_token + config.position_rows
    position = sources["embed.position"]._replace(rows=rows, n_rows=n_rows)
    return sources | {"embed.position": position}


def classifier_sources(config: BertConfig, dense: str, out: str) -> dict[str, Source]:
    """Where a classifier keeps its two layers; {} for a model without one."""
    if not config.n_classes:
        return {}
    layers = {"pooler": dense, "head": out}
    parts = ("weight", "bias")
    return {f"{ours}.{part}": Source(f"{theirs}.{part}") for ours, theirs in layers.items() for part in parts}
