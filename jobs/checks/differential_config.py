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
from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.folder import load_object, open_weights
from astra_mpi.checkpoint.reference import ASIDE, GUARDED, HARMLESS
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.convert import generation as hf_generation
from astra_mpi.convert.check.image_models import asked
from astra_mpi.convert.hugging_face import convert
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.models import CHECKPOINTS
from astra_mpi.models.encoders.roberta import Roberta

transformers.utils.logging.disable_progress_bar()

SIZES = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=48)
DEPTH = {name: value for name, value in SIZES.items() if name != "intermediate_size"}
SQUARE_IMAGE = dict(image_size=12, patch_size=4)
SQUARE = SIZES | SQUARE_IMAGE
TOWER = dict(vocab_size=9, hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=5)
TOWER |= dict(max_position_embeddings=4, eos_token_id=2, bos_token_id=1, pad_token_id=0)
TEXT = dict(vocab_size=64, max_position_embeddings=40)
IDS = np.random.default_rng(0).integers(3, 64, (2, 20))
IMAGES = np.random.default_rng(1).standard_normal((2, 3, 8, 12)).astype(np.float32)
ROPE3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
ROPE3 |= dict(original_max_position_embeddings=16, rope_theta=100.0)
LINEAR, YARN = dict(rope_type="linear", factor=4.0), dict(rope_type="yarn", factor=4.0)
YARN |= dict(original_max_position_embeddings=16)
GPTQ = dict(quant_method="gptq", bits=4)

VISION_CONFIGS: list[Any] = [SQUARE | {"hidden_act": "relu"}, SQUARE | {"layer_norm_eps": 0.1}, SQUARE]
VISION_CONFIGS += [
    SQUARE | {"num_attention_heads": 2},
    SQUARE | {"patch_size": 5},
    SQUARE | {"image_size": [12, 12]},
    {},
]

#: other values of a key, where doubling a number or turning a truth value will not do; of every family that has it
OTHERS: dict[str, list[Any]] = {
    "architectures": [["SomethingElse"], [], None, "BertModel"],
    "auto_map": [{"AutoModel": "modeling_x.Model"}, {}, {"AutoTokenizer": "tok.Tok"}],
    "quantization_config": [GPTQ, {"load_in_8bit": True}, None],
    "hidden_act": [*transformers.activations.ACT2FN, "nonsense", 3],
    "transformers_version": ["4.1.0"],
    "dtype": ["bfloat16", "float16", "nonsense"],
    "torch_dtype": ["bfloat16"],
    "id2label": [
        {"0": "a", "1": "b", "2": "c"},
        {"0": "a", "1": "b"},
        {},
        {"1": "a", "2": "b", "5": "c"},
        ["a", "b", "c"],
    ],
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
    "rope_parameters": [
        *(ROPE3, LINEAR, YARN, {}, LINEAR | {"partial_rotary_factor": 0.5}, LINEAR | {"type": "yarn"}, "linear"),
        *({"type": "linear", "factor": 4.0}, {"factor": 4.0}, {"rope_type": "linear"}, {"rope_theta": None}),
        *({"rope_type": "default", "rope_theta": 50, "mscale": 1.0}, {"full_attention": ROPE3}),
        *({**ROPE3, "original_max_position_embeddings": None}, {**ROPE3, "low_freq_factor": 9.0}),
    ],
    "rope_scaling": [
        *(ROPE3, LINEAR, YARN, {}, {"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 2.0}, None),
    ],
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
    "vision_config": VISION_CONFIGS,
    "vision_config_dict": VISION_CONFIGS,
    "rms_norm_eps": [1e-2, 1, 0.0, -1.0, "1e-6", float("nan")],
    "layer_norm_eps": [1e-2, 0.0, -1.0, "1e-6", float("inf"), float("nan")],
}
OTHERS["activation_function"] = OTHERS["hidden_act"]
OTHERS["layer_norm_epsilon"] = OTHERS["layer_norm_eps"]
OTHERS["n_head"], OTHERS["n_layer"] = OTHERS["num_attention_heads"], OTHERS["num_hidden_layers"]
OTHERS["n_positions"] = OTHERS["max_position_embeddings"]

#: keys in no class that are tried in every family, besides those that tables of hf_reference.py name
ALSO = (
    "model_type",
    "auto_map",
    "quantization_config",
    "num_labels",
    "head_dim",
    "is_causal",
    "layer_types",
    "made_up_key",
)
#: in decoders
ALSO_DECODER = ("rope_scaling", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
TRAINED = ROPE3 | dict(original_max_position_embeddings=32)
#: what has an effect only beside something else: family, key -> the changes that go with it
BESIDE: dict[tuple[str, str], list[tuple[tuple[str, Any], ...]]] = {
    **{(name, "torch_dtype"): [(), (("dtype", MISSING),)] for name in CHECKPOINTS},
    **{(name, "num_labels"): [(), (("id2label", MISSING),)] for name in ("vit", "deit", "vit_msn")},
    **{(name, "num_labels"): [(), (("id2label", MISSING),)] for name in ("dinov2", "dinov2_with_registers")},
    ("bert-classifier", "num_labels"): [(), (("id2label", MISSING),)],
    ("llama", "num_attention_heads"): [(), (("head_dim", MISSING),)],
    ("llama", "rope_theta"): [(), (("rope_parameters", MISSING),), (("rope_parameters", LINEAR),)],
    ("llama", "original_max_position_embeddings"): [(), (("rope_parameters", ROPE3),)],
    ("llama", "max_position_embeddings"): [(), (("rope_parameters", TRAINED),)],
    ("llama", "rope_scaling"): [
        *((), (("rope_theta", 50.0),), (("rope_parameters", MISSING),), (("rope_parameters", ROPE3),)),
    ],
    ("llama", "rope_parameters"): [(), (("rope_theta", 50.0),), (("rope_scaling", LINEAR),)],
    ("llama", "partial_rotary_factor"): [(), (("rope_parameters", LINEAR),)],
}


#: the reference fails on values whose meaning is clear: none, a number without a fraction, an id that never comes
EXCUSED = [("configuration_files", None), ("per_layer_config", {}), ("rms_norm_eps", 1), ("eos_token_id", [999, 40])]
EXCUSED += [("final_logit_softcapping", 3)]


class ConfigTable(Table):
    """config.json of one model_type; the model is small and its attention far from uniform."""

    def __init__(self, model_type: str, model: str, auto: str, name: str = "", **settings: Any) -> None:
        """name: of the table, default the model_type."""
        self.name, self.family, self.auto = name or model_type, CHECKPOINTS[model_type], getattr(transformers, auto)
        self.model, self.settings = getattr(transformers, model), settings
        self.answers: dict[Any, np.ndarray] = {}  # of our engine, by config
        #: keys that count here and in few others: of a head, of where positions begin
        self.own: tuple[str, ...] = ()
        if name.endswith("-classifier"):
            self.own = "id2label", "num_labels", "problem_type"
        elif issubclass(self.family, Roberta):
            self.own = ("pad_token_id",)

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

    def read_here(self, folder: Path) -> set[str]:
        """Keys that the family takes into its config."""
        hf = HFConfig(load_object(folder / "config.json"), self.family.reference)
        self.family.from_hf(hf, Tensors(folder, self.family, open_weights(folder)[0]))
        return hf.read

    def read_by_reference(self, folder: Path) -> set[str]:
        """Names that transformers asks its configuration for, found or not, while it loads the folder and answers.

        Methods and what begins with an underscore left out.
        """
        seen, base = set(), transformers.PreTrainedConfig
        ask = base.__getattribute__

        def note(config: Any, name: str) -> Any:
            if type(config) is self.config_class:  # configurations inside of it have tables of their own
                seen.add(name)
            return ask(config, name)

        base.__getattribute__ = note
        try:
            self.expected(folder)
        finally:
            base.__getattribute__ = ask
        return {n for n in seen if not n.startswith("_") and not callable(getattr(self.config_class, n, None))}

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
        found = model(torch.from_numpy(IDS))
        return found.logits if "logits" in found else found[0].mean(dim=1)

    def got(self, folder: Path) -> tuple[np.ndarray, list[str]]:
        contents, notes = convert(folder)
        if contents.config not in self.answers:  # the weights are those of all changes
            self.answers[contents.config] = self.run(_load(folder, contents))
        return self.answers[contents.config], notes

    def run(self, model: astra_mpi.Model) -> np.ndarray:
        """Our engine's answer."""
        if self.name == "vit":
            return model(IMAGES)
        return model(IDS, gather=True)[1] if self.family.causal else model(IDS)

    def excused(self, change: Change) -> bool:
        return (change.key, change.value) in EXCUSED

    def stated(self, key: str) -> str:
        if key in self.own:
            return ""
        return "aside" if key in ASIDE else "harmless" if self.family.reference.why_harmless(key) else ""


class ImageTable(ConfigTable):
    """config.json of an image encoder."""

    def __init__(self, family: str, model: str, auto: str = "AutoModel", **settings: Any) -> None:
        super().__init__(family, model, auto, **settings)
        inside = settings.get("vision_config", settings)
        size = inside.get("image_size", 12)
        height, width = (size, size) if isinstance(size, int) else size
        self.images = np.random.default_rng(1).standard_normal((2, 3, height, width)).astype(np.float32)
        self.config: Any = None  # ours, of the folder as it is made

    def make(self, folder: Path) -> None:
        super().make(folder)
        self.config = convert(folder)[0].config

    def answer(self, model: Any) -> torch.Tensor:
        return asked(model, torch.from_numpy(self.images), self.config)[0]

    def run(self, model: astra_mpi.Model) -> np.ndarray:
        return model(self.images)


class GenerationTable(ConfigTable):
    """generation_config.json: greedy continuations of a decoder."""

    N_NEW = 12

    def make(self, folder: Path) -> None:
        super().make(folder)
        (folder / "generation_config.json").write_text("{}")

    def changes(self) -> Iterator[Change]:
        for key in sorted({*vars(transformers.GenerationConfig()), "made_up_key"} - {"_original_object_hash"}):
            for value in OTHERS_GENERATION.get(key, [0.5, 3, True]):
                yield Change(key, value, "generation_config.json", BESIDE_GENERATION.get(key, ()))
        yield Change("eos_token_id", END, "config.json", (("bos_token_id", 1),))

    def expected(self, folder: Path) -> np.ndarray:
        torch.manual_seed(0)
        model = self.auto.from_pretrained(folder)
        length = {} if model.generation_config.max_new_tokens else {"max_new_tokens": self.N_NEW}
        found = model.generate(torch.from_numpy(IDS), attention_mask=torch.ones(IDS.shape), **length)
        ends = model.generation_config.eos_token_id
        ids = (found if torch.is_tensor(found) else found.sequences)[:, IDS.shape[1] :].numpy()
        ended = np.cumsum(np.isin(ids, [] if ends is None else ends), axis=1)
        ids = np.where(ended - np.isin(ids, [] if ends is None else ends) > 0, -1, ids)
        return np.pad(ids, ((0, 0), (0, self.N_NEW - ids.shape[1])), constant_values=-1)

    def got(self, folder: Path) -> tuple[np.ndarray, list[str]]:
        contents, notes = convert(folder)
        stop = tuple((contents.preprocess or {})["end_tokens"])
        if stop not in self.answers:
            self.answers[stop] = _load(folder, contents).generate(IDS, max_new_tokens=self.N_NEW, stop=stop)
        return self.answers[stop], notes

    def stated(self, key: str) -> str:
        aside = key in {*hf_generation.ABSENT, *hf_generation.ABSENT_SAMPLING, *hf_generation.OWN}
        return "aside" if aside else "harmless" if key in hf_generation.HARMLESS and key != "eos_token_id" else ""


class ArchitectureTable(ConfigTable):
    """config.json of a decoder that is a recipe and a mapping: the keys of its class alone; the others are Llama's."""

    def keys(self) -> list[str]:
        return [field.name for field in dataclasses.fields(self.config_class) if field.name not in HARMLESS]


def _load(folder: Path, contents: ModelFile) -> astra_mpi.Model:
    path = folder.with_suffix(".h5")
    write_model(path, contents)
    return astra_mpi.load(str(path), comm=MPI.COMM_SELF, strategy="single")


#: a token that the greedy continuation of one prompt holds, and one of the other
END, OTHER_END = 40, 7
OTHERS_GENERATION: dict[str, list[Any]] = {
    "eos_token_id": [END, [END, OTHER_END], None, 999, [999, END], "x", []],
    "pad_token_id": [3],
    "bos_token_id": [3],
    "transformers_version": ["4.1.0"],
    "_from_model_config": [True, False],
    "do_sample": [True, False],
    "temperature": [0.5],
    "top_k": [3],
    "top_p": [0.5],
    "max_length": [25],
    "max_new_tokens": [5],
    "min_length": [30],
    "min_new_tokens": [8],
    "stop_strings": [["a"]],
    "repetition_penalty": [1.5, 1.0],
    "encoder_repetition_penalty": [1.5],
    "no_repeat_ngram_size": [1, 0],
    "bad_words_ids": [[[END]]],
    "suppress_tokens": [[END]],
    "begin_suppress_tokens": [[END]],
    "sequence_bias": [[[[END], -10.0]]],
    "forced_bos_token_id": [3],
    "forced_eos_token_id": [3],
    "exponential_decay_length_penalty": [[2, 2.0]],
    "num_beams": [3, 1],
    "num_return_sequences": [1],
    "cache_implementation": ["dynamic", "static"],
    "compile_config": [None],
    "watermarking_config": [{"greenlist_ratio": 0.5, "bias": 5.0}],
    "length_penalty": [2.0],
    "early_stopping": [True],
    "num_assistant_tokens_schedule": ["heuristic"],
    "prompt_lookup_num_tokens": [3],
    "speculation_type": [None],
    "use_mtp": [False],
    "continuous_batching_config": [None],
    "cache_config": [None],
    "decoder_start_token_id": [3],
    "guidance_scale": [1.5, 1.0],
    "output_scores": [True],
}
#: without an end, a least length changes nothing
BESIDE_GENERATION: dict[str, tuple[tuple[str, Any], ...]] = {
    **dict.fromkeys(("min_length", "min_new_tokens", "exponential_decay_length_penalty"), (("eos_token_id", END),)),
    **dict.fromkeys(("temperature", "top_k", "top_p"), (("do_sample", True),)),
    **dict.fromkeys(hf_generation.ABSENT_SAMPLING, (("do_sample", True),)),
}


_GROUPED = SIZES | TEXT | dict(num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=None)
_OPT = {key: value for key, value in (SIZES | TEXT).items() if key != "intermediate_size"}
#: model_type -> class, settings
_CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("Mistral", _GROUPED),
    "qwen2": ("Qwen2", _GROUPED),
    "qwen3": ("Qwen3", _GROUPED | dict(head_dim=8)),
    "gemma": ("Gemma", _GROUPED | dict(head_dim=8)),
    "gemma2": ("Gemma2", _GROUPED | dict(head_dim=8, attn_implementation="eager")),
    "gemma3_text": ("Gemma3", _GROUPED | dict(head_dim=8)),
    "phi3": ("Phi3", _GROUPED),
    "granite": ("Granite", _GROUPED),
    "smollm3": ("SmolLM3", _GROUPED),
    "olmo2": ("Olmo2", _GROUPED),
    "gpt_neox": ("GPTNeoX", SIZES | TEXT | dict(bos_token_id=1, eos_token_id=2)),
    "opt": ("OPT", _OPT | dict(ffn_dim=48, bos_token_id=1, eos_token_id=2)),
    "starcoder2": ("Starcoder2", _GROUPED),
    "stablelm": ("StableLm", _GROUPED),
}
DECODERS = {
    name: ((f"{kind}ForCausalLM", "AutoModelForCausalLM"), settings) for name, (kind, settings) in _CLASSES.items()
}

LLAMA = ("llama", "LlamaForCausalLM", "AutoModelForCausalLM")
_MODERN = dict(pad_token_id=0, cls_token_id=1, bos_token_id=1, eos_token_id=2, sep_token_id=2)
_EURO = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, mask_token_id=3)
_DISTIL = dict(dim=32, n_heads=4, n_layers=2, hidden_dim=48)
TABLES: dict[str, Callable[[], Table]] = {
    "bert": functools.partial(ConfigTable, "bert", "BertModel", "AutoModel", **SIZES, **TEXT),
    "bert-classifier": functools.partial(
        ConfigTable,
        "bert",
        "BertForSequenceClassification",
        "AutoModelForSequenceClassification",
        "bert-classifier",
        **SIZES,
        **TEXT,
        num_labels=3,
    ),
    "roberta": functools.partial(ConfigTable, "roberta", "RobertaModel", "AutoModel", **SIZES, **TEXT),
    "xlm-roberta": functools.partial(ConfigTable, "xlm-roberta", "XLMRobertaModel", "AutoModel", **SIZES, **TEXT),
    "camembert": functools.partial(ConfigTable, "camembert", "CamembertModel", "AutoModel", **SIZES, **TEXT),
    "distilbert": functools.partial(ConfigTable, "distilbert", "DistilBertModel", "AutoModel", **_DISTIL, **TEXT),
    "electra": functools.partial(
        ConfigTable, "electra", "ElectraModel", "AutoModel", **SIZES, **TEXT, embedding_size=24
    ),
    "mpnet": functools.partial(ConfigTable, "mpnet", "MPNetModel", "AutoModel", **SIZES, **TEXT),
    "nomic_bert": functools.partial(ConfigTable, "nomic_bert", "NomicBertModel", "AutoModel", **SIZES, **TEXT),
    "modernbert": functools.partial(
        ConfigTable, "modernbert", "ModernBertModel", "AutoModel", **SIZES, **TEXT, **_MODERN, local_attention=6
    ),
    "eurobert": functools.partial(ConfigTable, "eurobert", "EuroBertModel", "AutoModel", **SIZES, **TEXT, **_EURO),
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
    "deit": functools.partial(
        ImageTable,
        "deit",
        "DeiTForImageClassificationWithTeacher",
        "DeiTForImageClassificationWithTeacher",
        **SIZES,
        image_size=(8, 12),
        patch_size=4,
        num_labels=3,
    ),
    "dinov2": functools.partial(
        ImageTable,
        "dinov2",
        "Dinov2ForImageClassification",
        "AutoModelForImageClassification",
        **DEPTH,
        image_size=12,
        patch_size=4,
        num_labels=3,
        mlp_ratio=2,
    ),
    "dinov2_with_registers": functools.partial(
        ImageTable,
        "dinov2_with_registers",
        "Dinov2WithRegistersModel",
        **DEPTH,
        image_size=12,
        patch_size=4,
        mlp_ratio=2,
    ),
    "clip_vision_model": functools.partial(ImageTable, "clip_vision_model", "CLIPVisionModel", **SQUARE),
    "clip": functools.partial(
        ImageTable, "clip", "CLIPModel", vision_config=SQUARE, text_config=TOWER, projection_dim=16
    ),
    "siglip_vision_model": functools.partial(ImageTable, "siglip_vision_model", "SiglipVisionModel", **SQUARE),
    "siglip": functools.partial(
        ImageTable, "siglip", "SiglipModel", vision_config=SQUARE, text_config=TOWER | dict(projection_size=32)
    ),
    "vit_mae": functools.partial(ImageTable, "vit_mae", "ViTMAEModel", **SIZES, image_size=12, patch_size=4),
    "vit_msn": functools.partial(
        ImageTable,
        "vit_msn",
        "ViTMSNForImageClassification",
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
    "llama": functools.partial(ConfigTable, *LLAMA, **SIZES, **TEXT, num_key_value_heads=2),
    **{name: functools.partial(ArchitectureTable, name, *of, **settings) for name, (of, settings) in DECODERS.items()},
    "generation": functools.partial(GenerationTable, *LLAMA, **SIZES, **TEXT),
}
