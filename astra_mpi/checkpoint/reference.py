"""What transformers reads of config.json: the fields of its configuration classes, and keys that it reads besides.

transformers is not needed to convert a model, so a family states here and in its own file what the class of its
model_type has, and with which defaults; tests/convert/test_differential.py holds the statement against transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

#: fields of every configuration class
BASE: Mapping[str, Any] = MappingProxyType(
    {
        "transformers_version": None,
        "architectures": None,
        "output_hidden_states": False,
        "return_dict": True,
        "dtype": None,
        "chunk_size_feed_forward": 0,
        "is_encoder_decoder": False,
        "id2label": None,
        "label2id": None,
        "problem_type": None,
    }
)

#: keys that are in no class, but change what transformers loads or computes -> values that, as null, change nothing
GUARDED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "text_config": (),  # another model inside of this one
        "decoder": (),
        "generator": (),
        "text_encoder": (),
        "per_layer_config": ({},),  # blocks that differ from each other
        "transformers_weights": (),  # another weight file
        "configuration_files": ([],),  # another config.json
        "pruned_heads": ({},),  # releases before 5 took these heads out
        "position_embedding_type": ("absolute",),  # releases before 5 had others
    }
)

#: the same, in decoders: masks and caches that leave far tokens out
GUARDED_DECODER: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "is_causal": (True,),
        "sliding_window": (),
        "attention_chunk_size": (),
        "kv_sharing_modes": (),
    }
)

#: what is looked at in encoders too, but acts in decoders only
_DECODERS = ("layer_types", "sliding_window", "attention_chunk_size", "kv_sharing_modes")
ENCODER: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(_DECODERS, "for decoders; in an encoder every token sees all tokens")
    | dict.fromkeys(("rope_parameters", "rope_scaling", "rope_theta"), "for models with rotary positions")
)

#: why keys do not change an answer (docs put "no effect: " before it) -> those keys, which may have any value
_BY_REASON = {
    "acts in training only": """hidden_dropout_prob attention_probs_dropout_prob attention_dropout resid_pdrop
        embd_pdrop attn_pdrop classifier_dropout initializer_range gradient_checkpointing""",
    "concerns what is returned beside the answer": """output_hidden_states output_attentions
        output_cross_attentions return_dict use_cache""",
    "belongs to a head that is not converted": """summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout encoder_stride pooler_output_size pooler_act problem_type
        label2id""",
    "changes how the answer is computed, not the answer": """chunk_size_feed_forward attn_implementation
        experts_implementation pretraining_tp fusion_config base_model_tp_plan base_model_pp_plan base_model_ep_plan
        base_model_fsdp_plan""",
    "a record of how the folder was made": "transformers_version _name_or_path name_or_path _commit_hash torchscript",
    "names a token that the tokenizer adds to texts": "bos_token_id pad_token_id",
    "see Generation below": "eos_token_id",
    "settings of transformers' pipelines": "task_specific_params",
    "for models of another kind": """vision_aspect_ratio vision_feature_layer
        vision_feature_select_strategy mtp_layer_types gguf_file""",
    "for generation; see Generation below": """max_length min_length do_sample early_stopping num_beams
        temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size num_return_sequences
        encoder_no_repeat_ngram_size bad_words_ids output_scores return_dict_in_generate forced_bos_token_id
        forced_eos_token_id remove_invalid_values suppress_tokens exponential_decay_length_penalty
        begin_suppress_tokens epsilon_cutoff eta_cutoff encoder_repetition_penalty num_assistant_tokens
        num_assistant_tokens_schedule target_lookbehind assistant_confidence_threshold assistant_lookbehind
        num_beam_groups diversity_penalty""",
}
HARMLESS = {key: why for why, keys in _BY_REASON.items() for key in keys.split()}

#: keys that are ignored with a note (tensors.py), and why
ASIDE = dict.fromkeys(
    ("dtype", "torch_dtype"), "weights stay as they are stored; transformers rounds them when it loads them"
)


@dataclass(frozen=True)
class Reference:
    """What transformers reads of the config.json of one model_type, and which of its classes we give the answers of."""

    architectures: tuple[str, ...]
    fields: Mapping[str, Any]  # of its configuration class -> defaults; `BASE` not repeated
    guarded: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # besides `GUARDED`
    harmless: Mapping[str, str] = field(default_factory=dict)  # besides `HARMLESS`
    aliases: Mapping[str, str] = field(default_factory=dict)  # other name of a field -> its name; the other name wins

    def default(self, key: str) -> Any:
        """Of a field of the class; KeyError for a key that it does not have."""
        return self.fields[key] if key in self.fields else BASE[key]

    def has(self, key: str) -> bool:
        """Whether the class has a field of this name."""
        return key in self.fields or key in BASE

    def why_harmless(self, key: str) -> str | None:
        """Why a value of this key does not change an answer, or None if it may."""
        return self.harmless.get(key) or HARMLESS.get(key) or ASIDE.get(key)

    def passing(self, key: str) -> tuple[Any, ...] | None:
        """The values, besides null, with which a key that the class does not have changes nothing; None: any."""
        return self.guarded[key] if key in self.guarded else GUARDED.get(key)

    @property
    def layers_key(self) -> str:
        """The field that counts blocks."""
        return self.aliases.get("num_hidden_layers", "num_hidden_layers")
