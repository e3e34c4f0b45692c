"""Tables of differential.py: config.json of each family, every field of transformers' configuration class and more."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from differential import MISSING, Change, Table
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert import convert
from astra_mpi.hf_reference import ASIDE, GUARDED, HARMLESS
from astra_mpi.modelfile import write_model
from astra_mpi.models import FAMILIES

transformers.utils.logging.disable_progress_bar()

SIZES = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48)
TEXT = dict(vocab_size=64, max_position_embeddings=40)
IDS = np.random.default_rng(0).integers(3, 64, (2, 20))
IMAGES = np.random.default_rng(1).standard_normal((2, 3, 8, 12)).astype(np.float32)
ROPE3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPE3 |= dict(original_max_position_embeddings=16, rope_theta=100.0)
LINEAR, YARN = dict(rope_type="linear", factor=4.0), dict(rope_type="yarn", factor=4.0)
YARN |= dict(original_max_position_embeddings=16)
GPTQ = dict(quant_method="gptq", bits=4)

#: other values of a key, where doubling a number or turning a truth value will not do; of every family that has it
OTHERS: dict[str, list[Any]] = {
    "architectures": [["SomethingElse"], [], None, "BertModel"],
    "auto_map": [{"AutoModel": "modeling_x.Model"}, {}, {"AutoTokenizer": "tok.Tok"}],
    "quantization_config": [GPTQ, {"load_in_8bit": True}, None],
    "hidden_act": ["gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh"]
    + ["gelu_accurate", "relu", "silu", "swish", "gelu_10", "quick_gelu", "mish", "linear", "nonsense", 3],
    "transformers_version": ["4.1.0"],
    "dtype": ["bfloat16", "float16", "nonsense"],
    "torch_dtype": ["bfloat16"],
    "id2label": [{"0": "a", "1": "b", "2": "c"}, {"0": "a", "1": "b"}, {}, {"1": "a", "2": "b", "5": "c"}, ["a", "b", "c"]],
    "num_labels": [3, 5, 0],
    "label2id": [{"a": 0, "b": 1, "c": 2}],
    "problem_type": ["regression", "multi_label_classification"],
    "image_size": [[12, 8], [8, 12.0], 8, [8], "8"],
    "patch_size": [[4, 4], [2, 8], 2, 0],
    "pooler_act": ["relu"],
    "pooler_output_size": [16],
    "num_key_value_heads": [2, 4, 1, 3],
    "head_dim": [8, 16, 4],
    "num_attention_heads": [2, 8, 5],
    "num_hidden_layers": [1, 3, 0],
    "rope_parameters": [ROPE3, LINEAR, YARN, {}, LINEAR | {"partial_rotary_factor": 0.5}, LINEAR | {"type": "yarn"}]
    + [{"type": "linear", "factor": 4.0}, {"factor": 4.0}, {"rope_type": "linear"}, {"rope_theta": None}]
    + [{"rope_type": "default", "rope_theta": 50, "mscale": 1.0}, {"full_attention": ROPE3}, "linear"]
    + [{**ROPE3, "original_max_position_embeddings": None}, {**ROPE3, "low_freq_factor": 9.0}],
    "rope_scaling": [ROPE3, LINEAR, YARN, {}, None, {"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}],
    "rope_theta": [50.0, 50, None, "50", 0, -1.0],
    "partial_rotary_factor": [0.5, 1.0, None],
    "original_max_position_embeddings": [8],
    "layer_types": [["full_attention"] * 2, ["sliding_attention"] * 2],
    "sliding_window": [4, None],
    "attention_chunk_size": [4],
    "kv_sharing_modes": [["reuse", "reuse"]],
    "is_causal": [True, False, None],
    "text_config": [{"hidden_size": 64}, None],
    "decoder": [{"hidden_size": 64}],
    "generator": [{"hidden_size": 64}],
    "text_encoder": [{"hidden_size": 64}],
    "per_layer_config": [{"1": {"intermediate_size": 40}}, {"1": {"skip": ["mlp"]}}, {"1": {"hidden_act": "relu"}}, {}],
    "transformers_weights": ["other.safetensors"],
    "configuration_files": [["config.4.0.0.json"], []],
    "pruned_heads": [{"0": [1]}, {}],
    "position_embedding_type": ["relative_key", "absolute"],
    "attn_implementation": ["eager", "sdpa"],
    "experts_implementation": ["eager"],
    "summary_type": ["last", "mean"],
    "summary_activation": ["tanh"],
    "n_inner": [48, 40, 128],
    "eos_token_id": [3, [3, 4], None, 999],
    "bos_token_id": [3, None, 999],
    "pad_token_id": [3, None, -1],
    "vision_feature_layer": [-2],
    "vision_aspect_ratio": ["pad"],
    "vision_feature_select_strategy": ["full"],
    "mtp_layer_types": [["full_attention"]],
    "fusion_config": [{}],
    "task_specific_params": [{"text-generation": {"do_sample": True, "max_length": 50}}],
    "name_or_path": ["somewhere"],
    "_name_or_path": ["somewhere"],
    "_commit_hash": ["abc"],
    "suppress_tokens": [[5]],
    "begin_suppress_tokens": [[5]],
    "bad_words_ids": [[[5]]],
    "exponential_decay_length_penalty": [[5, 1.1]],
    "forced_bos_token_id": [5],
    "forced_eos_token_id": [5],
    "num_assistant_tokens_schedule": ["heuristic"],
    "max_position_embeddings": [2048, 20],
    "made_up_key": [1, {"a": 1}],
    "rms_norm_eps": [1e-2, 1, 0.0, -1.0, "1e-6", float("nan")],
    "layer_norm_eps": [1e-2, 0.0, -1.0, "1e-6", float("inf"), float("nan")],
}
OTHERS["activation_function"] = OTHERS["hidden_act"]
OTHERS["layer_norm_epsilon"] = OTHERS["layer_norm_eps"]
OTHERS["n_head"], OTHERS["n_layer"] = OTHERS["num_attention_heads"], OTHERS["num_hidden_layers"]
OTHERS["n_positions"] = OTHERS["max_position_embeddings"]

#: keys in no class that are tried in every family, besides those that tables of hf_reference.py name
ALSO = ("model_type", "auto_map", "quantization_config", "num_labels", "head_dim", "is_causal", "layer_types", "made_up_key")
#: in decoders
ALSO_DECODER = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
#: what has an effect only beside something else: family, key -> the changes that go with it
BESIDE: dict[tuple[str, str], list[tuple[tuple[str, Any], ...]]] = {
    ("llama", "rope_theta"): [(), (("rope_parameters", MISSING),), (("rope_parameters", LINEAR),)],
    ("llama", "original_max_position_embeddings"): [(), (("rope_parameters", ROPE3),)],
    ("llama", "max_position_embeddings"): [(), (("rope_parameters", ROPE3 | dict(original_max_position_embeddings=32)),)],
    ("llama", "rope_scaling"): [(), (("rope_theta", 50.0),), (("rope_parameters", MISSING),), (("rope_parameters", ROPE3),)],
    ("llama", "rope_parameters"): [(), (("rope_theta", 50.0),), (("rope_scaling", LINEAR),)],
    ("llama", "partial_rotary_factor"): [(), (("rope_parameters", LINEAR),)],
}


class ConfigTable(Table):
    """config.json of one family; the model is small and its attention far from uniform."""

    def __init__(self, family: str, model: str, auto: str, **settings: Any) -> None:
        self.name, self.family, self.auto = family, FAMILIES[family], getattr(transformers, auto)
        self.model, self.settings = getattr(transformers, model), settings

    @property
    def config_class(self) -> Any:
        return self.model.config_class

    def make(self, folder: Path) -> None:
        torch.manual_seed(0)
        model = self.model(self.config_class(**self.settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
        model.save_pretrained(folder)

    def changes(self) -> Iterator[Change]:
        for key in self.keys():
            for beside in BESIDE.get((self.name, key), [()]):
                for value in self.values(key):
                    yield Change(key, value, beside=beside)

    def keys(self) -> list[str]:
        """Every field of the class, other names of some, and what transformers reads besides."""
        stated = self.family.reference
        more = (*stated.aliases, *stated.guarded, *stated.harmless, *GUARDED, *HARMLESS, *ASIDE, *ALSO)
        more += ALSO_DECODER * self.family.causal
        return list(dict.fromkeys([field.name for field in dataclasses.fields(self.config_class)] + list(more)))

    def values(self, key: str) -> list[Any]:
        """Values to try, with the key taken out, null and a text among them."""
        default = self.settings.get(key, getattr(self.config_class(), key, None))
        if key in OTHERS:
            return [*OTHERS[key], None, MISSING]
        if isinstance(default, bool):
            return [not default, int(default), str(default), None, MISSING]
        if isinstance(default, int):
            return [2 * default or 1, default * 1.0, str(default), -1, None, MISSING]
        if isinstance(default, float):
            return [0.5 * default or 0.5, str(default), None, MISSING]
        return [3, "other", None, MISSING]

    def expected(self, folder: Path) -> np.ndarray | None:
        model, told = self.auto.from_pretrained(folder, output_loading_info=True)
        if told["missing_keys"] or told["mismatched_keys"]:
            return None
        with torch.no_grad():
            return self.answer(model.eval()).float().numpy()

    def answer(self, model: Any) -> torch.Tensor:
        """In the terms of our engine."""
        if self.name == "vit":
            return model(torch.from_numpy(IMAGES))[0]
        if self.name == "bert":
            return model(torch.from_numpy(IDS))[0].mean(dim=1)
        return model(torch.from_numpy(IDS))[0]

    def got(self, folder: Path) -> tuple[np.ndarray, list[str]]:
        contents, notes = convert(folder)
        path = folder.with_suffix(".h5")
        write_model(path, contents)
        model = astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single")
        if self.name == "vit":
            return model(IMAGES), notes
        return model(IDS, gather=True)[1] if self.family.causal else model(IDS), notes

    def stated(self, key: str) -> str:
        return "aside" if key in ASIDE else "harmless" if self.family.reference.why_harmless(key) else ""


TABLES: dict[str, Callable[[], Table]] = {
    "bert": functools.partial(ConfigTable, "bert", "BertModel", "AutoModel", **SIZES, **TEXT),
    "vit": functools.partial(
        ConfigTable,
        "vit",
        "ViTForImageClassification",
        "AutoModelForImageClassification",
        **SIZES,
        image_size=(8, 12),
        patch_size=4,
        num_labels=3,
    ),
    "gpt2": functools.partial(
        ConfigTable,
        "gpt2",
        "GPT2LMHeadModel",
        "AutoModelForCausalLM",
        n_embd=32,
        n_head=4,
        n_layer=2,
        n_positions=40,
        vocab_size=64,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "llama": functools.partial(ConfigTable, "llama", "LlamaForCausalLM", "AutoModelForCausalLM", **SIZES, **TEXT),
}
