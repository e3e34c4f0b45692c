"""NomicBERT (arXiv 2402.01613): BERT with rotary positions, a gated MLP, and no biases in its linear layers."""

from __future__ import annotations

from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.models.bert import HEADLESS, OTHERS, classifier
from astra_mpi.models.encoders.encoder import Encoder, EncoderConfig
from astra_mpi.models.encoders.parts import encoder_fields, fused_rows, rotary
from astra_mpi.models.hf import Source, map_names

_READ = ("rope_parameters", "rope_scaling", "rope_theta")


class NomicBert(Encoder):
    model_type: ClassVar[str] = "nomic_bert"
    reference = Reference(
        architectures=tuple(
            f"NomicBert{head}"
            for head in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
        ),
        fields=dict(
            vocab_size=30528,
            hidden_size=768,
            num_hidden_layers=12,
            num_attention_heads=12,
            intermediate_size=3072,
            hidden_act="silu",
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            max_position_embeddings=2048,
            type_vocab_size=2,
            initializer_range=0.02,
            layer_norm_eps=1e-12,
            pad_token_id=0,
            classifier_dropout=None,
            bos_token_id=None,
            eos_token_id=None,
            rope_parameters=None,
            head_dim=None,
        ),
        guarded={"is_causal": (False,)},
        harmless={
            **OTHERS,
            **{key: why for key, why in {**ENCODER, **HEADLESS}.items() if key not in (*_READ, "head_dim")},
            "classifier_dropout": "acts in training only",
        },
    )
    hf_prefix = "nomic_bert."
    hf_anchor = "emb_ln.weight"
    hf_blocks = ("encoder.layers.", "layers.")

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> EncoderConfig:
        """config.json -> config. InputError on what is not supported."""
        fields = encoder_fields(hf, "hidden_act", "layer_norm_eps")
        return EncoderConfig(
            **fields,
            **rotary(hf, fields, theta=1000.0),
            type_vocab=hf.integer("type_vocab_size"),
            norm_first=False,
            embed_norm=True,
            **classifier(hf, tensors, "pooler.dense.weight", "classifier.weight"),
        )

    @staticmethod
    def hf_weights(config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor, by the names of the released checkpoints."""
        names = {
            "embed.word": "embeddings.word_embeddings.weight",
            "embed.type": "embeddings.token_type_embeddings.weight",
            "embed.norm": "emb_ln",
            "pooler": "pooler.dense",
            "head": "classifier",
        }
        block = dict.fromkeys("qkv", "attn.Wqkv") | {"o": "attn.out_proj", "norm1": "norm1", "norm2": "norm2"}
        block |= {"fc1": "mlp.fc11", "gate": "mlp.fc12", "fc2": "mlp.fc2"}
        sources = map_names(Encoder.weight_shapes(config), names, block, "encoder.layers.{}")
        return fused_rows(sources, {"q": config.d_queries, "k": config.d_kv, "v": config.d_kv})
