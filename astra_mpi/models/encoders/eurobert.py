"""EuroBERT (arXiv 2503.05500): Llama's blocks, every token seeing all."""

from __future__ import annotations

from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.bert import HEADLESS, OTHERS
from astra_mpi.models.classes import text_classes
from astra_mpi.models.encoders.encoder import Encoder, EncoderConfig
from astra_mpi.models.encoders.parts import biased, encoder_fields, rotary
from astra_mpi.models.hf import Source, map_names

_READ = ("rope_parameters", "rope_scaling", "rope_theta")
#: what the layer before the classifier takes
_OVER = {"bos": "cls", "mean": "mean", "late": "each"}


class EuroBert(Encoder):
    model_type: ClassVar[str] = "eurobert"
    reference = Reference(
        architectures=tuple(
            f"EuroBert{head}"
            for head in ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
        ),
        fields=dict(
            vocab_size=128256,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=None,
            hidden_act="silu",
            max_position_embeddings=8192,
            initializer_range=0.02,
            rms_norm_eps=1e-5,
            use_cache=True,
            pad_token_id=128001,
            bos_token_id=128000,
            eos_token_id=128001,
            pretraining_tp=1,
            tie_word_embeddings=False,
            rope_parameters=None,
            attention_bias=False,
            attention_dropout=0.0,
            mlp_bias=False,
            head_dim=None,
            mask_token_id=128002,
            classifier_pooling="late",
        ),
        guarded={"is_causal": (False,)},
        harmless={
            **OTHERS,
            **{key: why for key, why in {**ENCODER, **HEADLESS}.items() if key not in (*_READ, "head_dim")},
            "mask_token_id": "names a token that the tokenizer adds to texts",
            "classifier_pooling": "concerns a classifier only",
        },
    )
    hf_prefix = "model."
    hf_anchor = "norm.weight"
    hf_blocks = ("layers.",)
    hf_constants = (".rotary_emb.inv_freq", "lm_head.weight")

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> EncoderConfig:
        """config.json -> config. InputError on what is not supported."""
        fields = encoder_fields(hf, "hidden_act", "rms_norm_eps")
        n_heads = fields["n_heads"]
        n_kv_heads = n_heads if hf.get("num_key_value_heads") is None else hf.integer("num_key_value_heads")
        require(
            n_heads % n_kv_heads == 0,
            f"num_attention_heads = {n_heads} is not a multiple of num_key_value_heads = {n_kv_heads}",
        )
        return EncoderConfig(
            **fields | {"n_kv_heads": n_kv_heads},
            **rotary(hf, fields),
            type_vocab=0,
            rms=True,
            biased=biased(hf),
            **_classifier(hf, tensors),
        )

    @staticmethod
    def hf_weights(config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        names = {"embed.word": "embed_tokens.weight", "norm": "norm", "pooler": "dense", "head": "classifier"}
        block = {name: f"self_attn.{name}_proj" for name in "qkvo"}
        block |= {"gate": "mlp.gate_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
        block |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
        return map_names(Encoder.weight_shapes(config), names, block, "layers.{}")


def _classifier(hf: HFConfig, tensors: Tensors) -> dict[str, Any]:
    classes = text_classes(hf, tensors, "classifier.weight")
    if not classes:
        return {}
    hf.only("classifier_pooling", tuple(_OVER))
    over = _OVER[hf.get("classifier_pooling")]
    return {**classes, "pooling": "pooler", "has_pooler": True, "pooler_over": over, "pooler_activation": "gelu"}
