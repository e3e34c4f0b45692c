"""ModernBERT (arXiv 2412.13663): blocks that see all and blocks with a window in turn, with a theta of their own,
gated MLPs, and no norm before the first attention."""

from __future__ import annotations

from typing import Any, ClassVar

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.reference import ENCODER, Reference
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import require
from astra_mpi.models.bert import HEADLESS, OTHERS
from astra_mpi.models.classes import text_classes
from astra_mpi.models.encoders.encoder import Encoder, EncoderConfig
from astra_mpi.models.encoders.parts import biased, encoder_fields, fused_rows, without_biases
from astra_mpi.models.hf import Source, map_names
from astra_mpi.models.rope_settings import local_and_global, rope_fields

_KINDS = ("full_attention", "sliding_attention")
#: older keys of their thetas, and the defaults
_THETAS = {"global_rope_theta": 160000.0, "local_rope_theta": 10000.0}
_HEADS = "Model ForMaskedLM ForSequenceClassification ForTokenClassification ForQuestionAnswering ForMultipleChoice"
_TRAINING = ("embedding_dropout", "mlp_dropout", "classifier_dropout", "initializer_cutoff_factor")
_READ = ("rope_parameters", "rope_scaling", "rope_theta", "layer_types")
#: marks of sparse training, of the head that guesses words, and of kernels of the GPU
_OTHER = ("decoder_bias", "sparse_prediction", "sparse_pred_ignore_index", "deterministic_flash_attn")


class ModernBert(Encoder):
    model_type: ClassVar[str] = "modernbert"
    reference = Reference(
        architectures=tuple(f"ModernBert{head}" for head in _HEADS.split()),
        fields=dict(
            vocab_size=50368,
            hidden_size=768,
            intermediate_size=1152,
            num_hidden_layers=22,
            num_attention_heads=12,
            hidden_activation="gelu",
            max_position_embeddings=8192,
            initializer_range=0.02,
            initializer_cutoff_factor=2.0,
            norm_eps=1e-5,
            norm_bias=False,
            pad_token_id=50283,
            eos_token_id=50282,
            bos_token_id=50281,
            cls_token_id=50281,
            sep_token_id=50282,
            attention_bias=False,
            attention_dropout=0.0,
            layer_types=None,
            rope_parameters=None,
            local_attention=128,
            embedding_dropout=0.0,
            mlp_bias=False,
            mlp_dropout=0.0,
            decoder_bias=True,
            classifier_pooling="cls",
            classifier_dropout=0.0,
            classifier_bias=False,
            classifier_activation="gelu",
            deterministic_flash_attn=False,
            sparse_prediction=False,
            sparse_pred_ignore_index=-100,
            tie_word_embeddings=True,
        ),
        guarded={"is_causal": (False,)},
        harmless={
            **OTHERS,
            **{key: why for key, why in {**ENCODER, **HEADLESS}.items() if key not in (*_READ, "head_dim")},
            "rope_theta": "global_rope_theta is read instead, or rope_parameters",
            **dict.fromkeys(_TRAINING, "acts in training only"),
            **dict.fromkeys(_OTHER, "belongs to a head that is not converted, or says how it is computed"),
            **dict.fromkeys(("cls_token_id", "sep_token_id"), "names a token that the tokenizer adds to texts"),
            **dict.fromkeys(
                ("classifier_pooling", "classifier_bias", "classifier_activation"), "concerns a classifier only"
            ),
        },
    )
    hf_prefix = "model."
    hf_anchor = "final_norm.weight"
    hf_blocks = ("layers.",)

    @staticmethod
    def from_hf(hf: HFConfig, tensors: Tensors) -> EncoderConfig:
        """config.json -> config. InputError on what is not supported."""
        fields = encoder_fields(hf, "hidden_activation", "norm_eps")
        return EncoderConfig(
            **fields,
            **_rotary(hf, fields),
            windows=_windows(hf, fields["n_layers"]),
            type_vocab=0,
            embed_norm=True,
            plain_start=True,
            biased=biased(hf),
            **_classifier(hf, tensors),
        )

    @staticmethod
    def hf_weights(config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor; a norm without a bias has zeros."""
        names = {
            "embed.word": "embeddings.tok_embeddings.weight",
            "embed.norm": "embeddings.norm",
            "norm": "final_norm",
            "pooler": "head.dense",
            "pooler.norm": "head.norm",
            "head": "classifier",
        }
        block = dict.fromkeys("qkv", "attn.Wqkv") | {"o": "attn.Wo", "norm1": "attn_norm", "norm2": "mlp_norm"}
        block |= {"gate": "mlp.Wi", "fc1": "mlp.Wi", "fc2": "mlp.Wo"}
        sources = map_names(Encoder.weight_shapes(config), names, block, "layers.{}")
        sources = fused_rows(sources, {"q": config.d_queries, "k": config.d_kv, "v": config.d_kv})
        sources = fused_rows(sources, {"gate": config.d_ff, "fc1": config.d_ff})
        layers = ("embed.norm", "norm", "pooler.norm", "norm1", "norm2") * (not config.norm_bias)
        return without_biases(sources, *layers, *("pooler",) * (not config.pooler_bias))


def _windows(hf: HFConfig, n_layers: int) -> tuple[int, ...]:
    """Tokens up to half of local_attention away are seen, that distance included."""
    every, kinds = hf.get("global_attn_every_n_layers"), hf.get("layer_types")
    every = 3 if every is None else every
    require(type(every) is int and every >= 1, f"global_attn_every_n_layers = {shown(every)} must be an integer >= 1")
    if kinds is None:
        kinds = [_KINDS[i % every > 0] for i in range(n_layers)]
    known = isinstance(kinds, list) and len(kinds) == n_layers and all(kind in _KINDS for kind in kinds)
    require(known, f"layer_types = {shown(kinds)} is not supported; give {n_layers}, each {' or '.join(_KINDS)}")
    window = hf.integer("local_attention") // 2 + 1
    sizes = tuple(window if kind == _KINDS[1] else 0 for kind in kinds)
    return sizes if any(sizes) else ()


def _rotary(hf: HFConfig, fields: dict[str, Any]) -> dict[str, Any]:
    scaling = hf.get("rope_scaling")
    require(not scaling, f"rope_scaling = {shown(scaling)} is not supported; only null is")
    d_head = fields["d_model"] // fields["n_heads"]
    rope, local_theta = local_and_global(hf, fields["max_positions"], d_head, _THETAS)
    return rope_fields(rope) | {"rope_local_theta": local_theta}


def _classifier(hf: HFConfig, tensors: Tensors) -> dict[str, Any]:
    norm_bias = hf.flag("norm_bias")
    classes = text_classes(hf, tensors, "classifier.weight")
    if not classes:
        return {"norm_bias": norm_bias}
    hf.only("classifier_pooling", ("cls", "mean"))
    return {
        **classes,
        "pooling": "pooler",
        "has_pooler": True,
        "pooler_over": hf.get("classifier_pooling"),
        "pooler_activation": hf.activation("classifier_activation"),
        "pooler_norm": True,
        "pooler_bias": hf.flag("classifier_bias"),
        "norm_bias": norm_bias,
    }
