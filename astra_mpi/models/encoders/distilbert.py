"""DistilBERT (arXiv 1910.01108): BERT without token types and without a pooler; its classifier ends in ReLU."""

from __future__ import annotations

from typing import ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.bert import HEADLESS, Bert, classifier
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.hf import Source, map_names

_HEADS = "Model ForMaskedLM ForSequenceClassification ForTokenClassification ForQuestionAnswering ForMultipleChoice"
#: of its norms, which no setting changes
_NORM_EPS = 1e-12


class DistilBert(Bert):
    model_type: ClassVar[str] = "distilbert"
    reference = Reference(
        architectures=tuple(f"DistilBert{head}" for head in _HEADS.split()),
        fields=dict(
            vocab_size=30522,
            max_position_embeddings=512,
            sinusoidal_pos_embds=False,
            n_layers=6,
            n_heads=12,
            dim=768,
            hidden_dim=3072,
            dropout=0.1,
            attention_dropout=0.1,
            activation="gelu",
            initializer_range=0.02,
            qa_dropout=0.1,
            seq_classif_dropout=0.2,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
            tie_word_embeddings=True,
        ),
        guarded={"is_causal": (False,)},
        harmless={
            **ENCODER,
            **HEADLESS,
            "sinusoidal_pos_embds": "how training begins; the positions are weights",
            **dict.fromkeys(("dropout", "qa_dropout", "seq_classif_dropout"), "acts in training only"),
        },
        aliases={"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"},
    )
    hf_prefix = "distilbert."
    hf_blocks = ("transformer.layer.",)

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> BertConfig:
        """config.json -> config. InputError on what is not supported."""
        d_model, n_heads = hf.heads("dim", "n_heads")
        return BertConfig(
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=n_heads,
            n_layers=hf.integer("n_layers"),
            d_ff=hf.integer("hidden_dim"),
            activation=hf.activation("activation"),
            norm_eps=_NORM_EPS,
            vocab_size=hf.integer("vocab_size"),
            max_positions=hf.integer("max_position_embeddings"),
            type_vocab=0,
            pooler_activation="relu",
            **classifier(hf, tensors, "", "classifier.weight"),
        )

    @staticmethod
    def hf_weights(config: BertConfig) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = {
            "embed.word": "embeddings.word_embeddings.weight",
            "embed.position": "embeddings.position_embeddings.weight",
            "embed.norm": "embeddings.LayerNorm",
            "pooler": "pre_classifier",
            "head": "classifier",
        }
        block = {name: f"attention.{name}_lin" for name in "qkv"}
        block |= {"o": "attention.out_lin", "fc1": "ffn.lin1", "fc2": "ffn.lin2"}
        block |= {"norm1": "sa_layer_norm", "norm2": "output_layer_norm"}
        return map_names(Bert.weight_shapes(config), names, block, "transformer.layer.{}")
