"""The changes of jobs/checks/differential_text.py: fields of files, and other values for them."""

from __future__ import annotations

import inspect
import re
from typing import Any, NamedTuple

from differential import names

REMOVED = "<removed>"
CONFIG, FILE, SPECIAL, ADDED = (
    "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
SBERT, MODEL, MODULES, POOLING = (
    "sentence_bert_config.json", "config_sentence_transformers.json", "modules.json", "1_Pooling/config.json",
)  # fmt: skip
NORMALIZE = "2_Normalize/config.json"


class Change(NamedTuple):
    """A key of a JSON file, keys inside it after dots, and its value; without a key the whole file."""

    file: str
    key: str
    value: Any

    def names(self, message: str) -> bool:
        """Whether a message names the key, or the file where there is none, or a name that is the value."""
        parts = [part for part in self.key.split(".") if part and not part.isdigit()] or [self.file]
        if isinstance(self.value, str) and self.value != REMOVED:
            parts.append(self.value.removesuffix("Fast"))
        return any(names(part, message) for part in parts)

    def __str__(self) -> str:
        return f"{self.file} {self.key} = {str(self.value)[:60]}"


def _token(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict(lstrip=False, rstrip=False, single_word=False, normalized=False, special=True)
    return {"__type": "AddedToken", "content": content} | plain | flags


def _added(content: str, **flags: bool) -> dict[str, Any]:
    return {key: value for key, value in _token(content, **flags).items() if key != "__type"}


_BOTH = [True, False, REMOVED]
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_NAMED = ["[query]", "dog", "<new>", _token("[MASK]", lstrip=True, rstrip=True), REMOVED]

#: of tokenizer_config.json
TOKENIZER: dict[str, list[Any]] = {
    "tokenizer_class": [
        REMOVED, "BertTokenizer", "BertTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast",
        "TokenizersBackend", "PreTrainedTokenizer", "DistilBertTokenizer", "ElectraTokenizerFast", "RobertaTokenizer",
        "Qwen2TokenizerFast", "XLMRobertaTokenizerFast", "T5Tokenizer", "NoSuchTokenizer",
    ],
    "do_lower_case": _BOTH,
    "strip_accents": [*_BOTH, None],
    "tokenize_chinese_chars": _BOTH,
    "add_prefix_space": _BOTH,
    "trim_offsets": _BOTH,
    "legacy": _BOTH,
    "errors": ["strict"],
    "use_default_system_prompt": [True],
    "model_max_length": [7, 1000, int(1e30), None, REMOVED],
    "max_len": [9],
    "truncation_side": ["left", "right", REMOVED],
    "padding_side": ["left", "right"],
    "clean_up_tokenization_spaces": _BOTH,
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": _BOTH,
    "split_special_tokens": _BOTH,
    "add_bos_token": _BOTH,
    "add_eos_token": _BOTH,
    **dict.fromkeys(_NAMES, _NAMED),
    "image_token": ["[query]", _token("[query]")],
    "extra_special_tokens": [["[query]", "dog"], {"image_token": "[query]"}, [_token("quick", normalized=True)], []],
    "additional_special_tokens": [["[query]"], [_token("[query]", lstrip=True)], []],
    "added_tokens_decoder": [
        {}, {"2": _added("[CLS]", lstrip=True)}, {"700": _added("[query]")}, {"0": _added("dog", special=False)},
        {"5": _added("quick", special=False, single_word=True), "6": _added("brown", rstrip=True)},
    ],
    "model_input_names": [["input_ids", "attention_mask"], ["input_ids"], REMOVED],
    "chat_template": ["{{ messages }}"],
    "chat_control_tokens": [["[query]"]],
    "response_template": ["x"],
    "response_schema": [{"a": 1}],
    "auto_map": [{"AutoTokenizer": ["code.Slow", "code.Fast"]}, {}],
    "init_inputs": [["x"], []],
    "fast_tokenizer_files": [["tokenizer.json"], ["tokenizer.4.0.0.json", "tokenizer.json"]],
    "max_length": [5],
    "stride": [2],
    "truncation_strategy": ["only_second"],
    "pad_to_multiple_of": [8],
    "pad_token_type_id": [3],
    "backend": ["custom"],
    "verbose": [True],
    "name_or_path": ["elsewhere"],
    "is_local": [False],
    "local_files_only": [False],
    "processor_class": ["SomeProcessor"],
    "fix_mistral_regex": [True],
    "files_loaded": [["x"]],
    "vocab": [{"a": 0}],
    "merges": [["a b"]],
    "vocab_file": ["/nowhere/vocab.txt"],
    "merges_file": ["/nowhere/merges.txt"],
    "tokenizer_file": ["/nowhere/tokenizer.json"],
    "tokenizer_object": ["x"],
    "tokenizer": ["x"],
    "gguf_file": ["x.gguf"],
    "post_processor": ["x"],
    "tokenizer_padding": [{"length": 9}],
    "tokenizer_truncation": [{"max_length": 9}],
    "_json_truncation": [{"max_length": 9}],
    "_json_padding": [{"length": 9}],
    "_spm_precompiled_charsmap": ["x"],
    "model_specific_special_tokens": [{"image_token": "[query]"}],
    "unk_id": [1],
    "_commit_hash": ["0"],
    "sp_model_kwargs": [{}],
    "never_split": [["dog"]],
    "do_basic_tokenize": [False],
    "use_fast": [False],
    "from_slow": [True],
    "an_unknown_key": [True, "x"],
}  # fmt: skip

_TRUNCATION = {"direction": "Left", "max_length": 6, "strategy": "LongestFirst", "stride": 0}
_PADDING = {
    "strategy": {"Fixed": 60}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "[query]",
}  # fmt: skip
_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "x", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"x": {"id": "x", "ids": [7, 8], "tokens": ["x", "y"]}},
}  # fmt: skip
_BERT_NORMALIZER = dict(
    type="BertNormalizer", clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=True
)

#: of tokenizer.json
WHOLE: dict[str, list[Any]] = {
    "version": ["1.0", "9.9"],
    "truncation": [None, _TRUNCATION, _TRUNCATION | {"direction": "Right"}, REMOVED],
    "padding": [None, _PADDING, REMOVED],
    "added_tokens": [[], [{"id": 2} | _added("[CLS]", lstrip=True)], [{"id": 900} | _added("[query]", special=False)]],
    "normalizer": [
        None, _BERT_NORMALIZER, {"type": "Lowercase"},
        {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]},
        {"type": "Replace", "pattern": {"String": "dog"}, "content": "fox"},
    ],
    "pre_tokenizer": [
        None, {"type": "Whitespace"}, {"type": "BertPreTokenizer"},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "Whitespace"}]},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    ],
    "post_processor": [
        None, _TEMPLATE, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "BertProcessing", "sep": ["fox", 9], "cls": ["dog", 8]},
    ],
    "decoder": [None, {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Fuse"}],
    "model.unk_token": [None, "dog"],
    "model.continuing_subword_prefix": ["##", "@@"],
    "model.end_of_word_suffix": ["</w>"],
    "model.max_input_chars_per_word": [4],
    "model.fuse_unk": [True, False],
    "model.byte_fallback": [True, False],
    "model.ignore_merges": [True, False],
    "model.dropout": [None, 0.0, 0.5],
    "model.unk_id": [0],
    "an_unknown_key": [1],
}  # fmt: skip

#: of special_tokens_map.json and added_tokens.json, whole
LEGACY = [
    Change(SPECIAL, "", REMOVED),
    Change(SPECIAL, "", {}),
    *(Change(SPECIAL, key, value) for key in _NAMES for value in ("[query]", "dog", _added("quick", lstrip=True))),
    Change(SPECIAL, "additional_special_tokens", ["[query]"]),
    Change(SPECIAL, "extra_special_tokens", ["[query]", _added("dog")]),
    Change(SPECIAL, "extra_special_tokens", {"image_token": "[query]"}),
    Change(SPECIAL, "image_token", "[query]"),
    Change(SPECIAL, "an_unknown_key", "x"),
    Change(ADDED, "", REMOVED),
    Change(ADDED, "", {"[query]": 900, "dog": 901}),
    Change("chat_template.jinja", "", "x"),
    Change("config.json", "tokenizer_class", "PreTrainedTokenizerFast"),
    Change("config.json", "tokenizer_class", "LlamaTokenizerFast"),
    Change("config.json", "tokenizer_class", "T5Tokenizer"),
]  # fmt: skip

_T = "sentence_transformers."
_NEW = [
    dict(idx=0, name="0", path="", type=_T + "base.modules.transformer.Transformer"),
    dict(idx=1, name="1", path="1_Pooling", type=_T + "sentence_transformer.modules.pooling.Pooling"),
    dict(idx=2, name="2", path="2_Normalize", type=_T + "base.modules.normalize.Normalize"),
]


def _modules(*order: int, **changes: Any) -> list[dict[str, Any]]:
    return [_NEW[i] | dict(idx=n, name=str(n)) | changes.get(f"m{i}", {}) for n, i in enumerate(order)]


#: of the files of sentence-transformers
SENTENCE: dict[str, dict[str, list[Any]]] = {
    SBERT: {
        "max_seq_length": [8, 44, 4000, None, REMOVED],
        "do_lower_case": _BOTH,
        "transformer_task": ["feature-extraction", "fill-mask", "text-generation"],
        "modality_config": [{"text": {"method": "forward", "method_output_name": "pooler_output"}},
                            {"text": {"method": "forward", "method_output_name": ["hidden_states", 1]}},
                            {"message": {"method": "forward", "method_output_name": "last_hidden_state"}}],
        "module_output_name": ["token_embeddings", "sentence_embedding"],
        "processing_kwargs": [{}, {"text": {"max_length": 6}}, {"text": {"truncation": False}}, {"image": {"x": 1}},
                              {"text": {"padding": "max_length"}}, {"text": {"add_special_tokens": False}},
                              {"common": {"return_tensors": "pt"}}, {"common": {"max_length": 6}}],
        "unpad_inputs": [True, False],
        "query_length": [4],
        "document_length": [4],
        "query_expansion": [{"strategy": "fixed", "length": 32, "attend": True}],
        "model_kwargs": [{}, {"attn_implementation": "eager"}, {"output_hidden_states": True}],
        "model_args": [{}, {"torch_dtype": "float32"}, {"num_hidden_layers": 1}],
        "config_kwargs": [{}, {"num_hidden_layers": 1}, {"use_cache": False}],
        "config_args": [{"hidden_act": "relu"}],
        "processor_kwargs": [{}, {"model_max_length": 5}, {"model_max_length": None}, {"do_lower_case": True},
                             {"truncation_side": "left"}, {"add_bos_token": True}, {"subfolder": "x"}],
        "tokenizer_args": [{"strip_accents": True}, {"split_special_tokens": True}, {"cls_token": "dog"}],
        "tokenizer_name_or_path": [None, "elsewhere"],
        "backend": ["torch", "onnx"],
        "an_unknown_key": [1],
        "": [REMOVED, {}],
    },
    "sentence_roberta_config.json": {"": [{"max_seq_length": 6}]},
    MODEL: {
        "": [REMOVED, {}],
        "prompts": [{}, {"query": "dog: "}, REMOVED],
        "default_prompt_name": ["query", "passage", "document", "unknown", None],
        "truncate_dim": [1, 7, 24, 100, None, 0, -3],
        "similarity_fn_name": ["cosine", "dot", "manhattan", "maxsim", None],
        "model_type": ["SentenceTransformer", "SparseEncoder", "CrossEncoder"],
        "__version__": [{"sentence_transformers": "99.0"}],
        "requirements": [["numpy"], ["no-such-package>=3"]],
        "an_unknown_key": [1],
    },
    MODULES: {
        "": [
            _NEW, _modules(0, 1), _modules(0, 2, 1), _modules(0, 2, 1, 2), _modules(0, 1, 1), _modules(0),
            _modules(1, 0),
            _modules(0, 1, 2, m2={"type": "sentence_transformers.models.Dropout"}),
            _modules(0, 1, 2, m2={"type": "sentence_transformers.models.LayerNorm"}),
            _modules(0, 1, 2, m2={"type": "sentence_transformers.models.Dense"}),
            _modules(0, 1, 2, m2={"type": "custom.Normalize"}),
            _modules(0, 1, 2, m2={"name": "1"}),
        ],
        "0.type": [_T + "sparse_encoder.models.MLMTransformer", _T + "models.CLIPModel"],
        "0.path": ["nowhere"],
        "1.path": ["2_Normalize"],
        "1.idx": [7],
        "1.name": ["pool", REMOVED],
        "1.kwargs": [["task"]],
    },
    POOLING: {
        "word_embedding_dimension": [7, REMOVED],
        "embedding_dimension": [24],
        "pooling_mode": ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens", ["mean"],
                         ["cls", "mean"], "none"],
        "pooling_mode_cls_token": _BOTH,
        "pooling_mode_mean_tokens": [False, REMOVED],
        "pooling_mode_max_tokens": _BOTH,
        "pooling_mode_mean_sqrt_len_tokens": _BOTH,
        "pooling_mode_weightedmean_tokens": _BOTH,
        "pooling_mode_lasttoken": _BOTH,
        "include_prompt": [True, False],
        "an_unknown_key": [1],
    },
    NORMALIZE: {
        "module_input_name": ["sentence_embedding", "token_embeddings", None],
        "module_output_name": ["sentence_embedding", "token_embeddings", None],
        "an_unknown_key": [1],
    },
}  # fmt: skip

#: tokenizer settings that sentence-transformers passes through, or that meet its own
_THROUGH = (
    "do_lower_case",
    "model_max_length",
    "truncation_side",
    "model_input_names",
    "processor_class",
    "tokenizer_class",
)


def _of(file: str, fields: dict[str, list[Any]]) -> list[Change]:
    return [Change(file, key, value) for key, values in fields.items() for value in values]


def tokenizer_changes() -> list[Change]:
    return [*_of(CONFIG, TOKENIZER), Change(CONFIG, "", REMOVED), *_of(FILE, WHOLE), *LEGACY]


def sentence_changes() -> list[Change]:
    changes = [change for file, fields in SENTENCE.items() for change in _of(file, fields)]
    through = [change for change in _of(CONFIG, TOKENIZER) if change.key in _THROUGH]
    return [*changes, *through, *(c for c in _of(FILE, WHOLE) if c.key in ("truncation", "padding", "normalizer"))]


def uncovered() -> list[str]:
    """Fields that the source of the installed references reads, and that no change covers: "file key"."""
    return sorted(_uncovered_of_tokenizers() | _uncovered_of_sentences())


def _read_in(kind: Any, *variables: str) -> set[str]:
    """Keys that a class or function looks up in these variables."""
    source = inspect.getsource(kind)
    names = "|".join(map(re.escape, variables))
    found = re.findall(rf'(?:{names})(?:\.(?:get|pop|setdefault)\(|\[)"(\w+)"', source)
    return set(found) | set(re.findall(rf'"(\w+)" (?:not )?in (?:{names})\b', source))


def _uncovered_of_tokenizers() -> set[str]:
    from transformers import tokenization_utils_base as base
    from transformers import tokenization_utils_tokenizers as fast
    from transformers.models.auto import tokenization_auto as auto

    from astra_mpi.convert.tokenizer_classes import CLASSES

    known = set(TOKENIZER) | {"name", "content", "type"}
    backend = fast.TokenizersBackend
    read = _read_in(base.PreTrainedTokenizerBase.__init__, "kwargs") | _read_in(backend.__init__, "kwargs")
    read |= _read_in(base.PreTrainedTokenizerBase._from_pretrained.__func__, "init_kwargs", "tokenizer_config")
    read |= _read_in(base.PreTrainedTokenizerBase.from_pretrained.__func__, "tokenizer_config")
    read |= _read_in(backend.convert_to_native_format.__func__, "local_kwargs")
    read |= _read_in(auto.AutoTokenizer.from_pretrained.__func__, "tokenizer_config")
    for kind in CLASSES:
        own = getattr(__import__("transformers"), kind.name)
        read |= set(inspect.signature(own.__init__).parameters) - {"self", "args", "kwargs"}
    return {f"{CONFIG} {key}" for key in read - known}


def _uncovered_of_sentences() -> set[str]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.model import BaseModel
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    found = set()
    for file, kind in ((SBERT, Transformer), (POOLING, Pooling), (NORMALIZE, Normalize)):
        read = set(inspect.signature(kind.__init__).parameters) | set(kind.config_keys)
        known = {*SENTENCE[file], "self", "model_name_or_path", "args", "kwargs"}
        found |= {f"{file} {key}" for key in read - known}
    methods = (BaseModel._load_config_modules, BaseModel._parse_model_config, SentenceTransformer._parse_model_config)
    read = {key for method in methods for key in _read_in(method, "model_config")}
    found |= {f"{MODEL} {key}" for key in read - set(SENTENCE[MODEL])}
    read = _read_in(BaseModel._load_config_modules, "module_config")
    return found - {f"{MODEL} sentence_transformers"} | {
        f"{MODULES} {key}" for key in read if not any(key in name for name in SENTENCE[MODULES])
    }
