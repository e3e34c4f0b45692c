"""Small folders of every kind of tokenizer, and of a sentence encoder, for jobs/checks/differential_text.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: what the vocabularies are made of
CORPUS = [
    "The quick brown fox jumps over the lazy dog, and Café Größe naïve façade run in Paris.",
    "hello world! it's a dog's life; don't you know? 12345 67 8 tokens [query] don't",
    "中文 日本語 text 語", "def f(x):\n    return x + 1", "query: passage: document hello world",
]  # fmt: skip
#: what both sides make tokens of: accents, Chinese, upper case, spaces, special tokens by name, emoji, long texts
TEXTS = [
    "The quick brown fox", "Café GRÖSSE naïve FAÇADE", "中文 hello 日本語", "  two leading spaces", "", " ",
    "spelled [CLS] and [MASK]x[SEP] [PAD] <s> </s> <unk> <|endoftext|> <extra> [query]dog", "dog 👩‍👩‍👧 ∑ x",
    "it's  a\ttab\nand don't 12345", "the quick brown fox jumps over the lazy dog " * 8, "DOG",
]  # fmt: skip
MAX_POSITIONS, WIDTH = 48, 24

Folder = Callable[[Path], None]


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _specials(*names: str) -> dict[str, str]:
    return dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), names, strict=False))


_BERT = _specials("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def _train(fast: Any, trainer: Any) -> Any:
    fast.train_from_iterator(CORPUS * 4, trainer)
    return fast


def word_pieces() -> Any:
    """As BERT's."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)  # words of both kinds are in it
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(_BERT.values()), show_progress=False)
    plain = [normalizers.BertNormalizer().normalize_str(text) for text in CORPUS]
    fast.train_from_iterator([*CORPUS, *plain] * 4, trainer)
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return fast


def byte_level(prefix: bool = False, *more: str) -> Any:
    """As GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>", *more]
    return _train(
        fast,
        trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=special, show_progress=False),
    )


def metaspace() -> Any:
    """As the first Llamas': byte fallback, ▁ for spaces."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    fast = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    _train(fast, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    kept = json.loads(fast.to_str())
    kept["added_tokens"] = kept["added_tokens"][:3]
    fast = Tokenizer.from_str(json.dumps(kept))
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


def unigram() -> Any:
    """As XLM-RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    fast = Tokenizer(models.Unigram())
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False)
    _train(fast, trainer)
    fast.decoder = decoders.Metaspace()
    fast.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return fast


def _config(path: Path, model_type: str, **more: Any) -> None:
    """config.json, as far as tokenizers read it; weights are not needed."""
    put(path / "config.json", {"model_type": model_type} | more)


def _folder(fast: Callable[[], Any], model_type: str, **settings: Any) -> Folder:
    def make(path: Path) -> None:
        path.mkdir(parents=True)
        _config(path, model_type)
        fast().save(str(path / "tokenizer.json"))
        put(path / "tokenizer_config.json", {"model_max_length": 40} | settings)

    return make


def _bert_vocab(path: Path) -> None:
    path.mkdir(parents=True)
    _config(path, "bert")
    vocab = word_pieces().get_vocab()
    (path / "vocab.txt").write_text("".join(f"{w}\n" for w in sorted(vocab, key=vocab.__getitem__)), encoding="utf-8")
    put(path / "tokenizer_config.json", {"model_max_length": 40, "do_lower_case": False} | _BERT)
    put(path / "special_tokens_map.json", _BERT)


def _gpt2_files(path: Path) -> None:
    path.mkdir(parents=True)
    _config(path, "gpt2")
    model = json.loads(byte_level().to_str())["model"]
    put(path / "vocab.json", model["vocab"])
    pairs = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    put(path / "tokenizer_config.json", {"model_max_length": 40})
    put(path / "added_tokens.json", {"<extra>": 340})


_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_XLM = _LLAMA | {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
_GPT = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")

#: name -> what makes the folder
FOLDERS: dict[str, Folder] = {
    "bert": _folder(word_pieces, "bert", tokenizer_class="BertTokenizer", do_lower_case=True, **_BERT),
    "bert-backend": _folder(word_pieces, "bert", tokenizer_class="PreTrainedTokenizerFast", **_BERT),
    "bert-vocab": _bert_vocab,
    "bert-xlm": _folder(unigram, "bert", tokenizer_class="XLMRobertaTokenizer", **_XLM),
    "gpt2": _folder(byte_level, "gpt2", tokenizer_class="GPT2TokenizerFast", **_GPT),
    "gpt2-files": _gpt2_files,
    "gpt2-bert": _folder(word_pieces, "gpt2", tokenizer_class="BertTokenizer", **_BERT),
    "llama": _folder(metaspace, "llama", tokenizer_class="LlamaTokenizer", **_LLAMA),
    "llama-none": _folder(metaspace, "llama", **_LLAMA),
    "llama-bytes": _folder(byte_level, "llama", tokenizer_class="LlamaTokenizerFast", **_GPT),
    "llama-gpt2": _folder(byte_level, "llama", tokenizer_class="GPT2Tokenizer", **_GPT),
    "llama-qwen2": _folder(byte_level, "llama", tokenizer_class="Qwen2Tokenizer", **_GPT),
    "llama-roberta": _folder(
        lambda: byte_level(False, "<s>", "</s>", "<unk>", "<pad>", "<mask>"), "llama",
        tokenizer_class="RobertaTokenizer", **_XLM,
    ),
    "gemma": _folder(metaspace, "gemma3_text", **_LLAMA, pad_token="<unk>"),
    "distilbert": _folder(word_pieces, "distilbert", tokenizer_class="DistilBertTokenizer", **_BERT),
    "mpnet": _folder(word_pieces, "mpnet", **_XLM | {"unk_token": "[UNK]"}),
    "camembert": _folder(unigram, "camembert", **_XLM),
    "roberta": _folder(lambda: byte_level(False, "<s>", "</s>", "<unk>", "<pad>", "<mask>"), "roberta", **_XLM),
    "xlm-roberta": _folder(unigram, "xlm-roberta", **_XLM),
}  # fmt: skip


def sentence_encoder(path: Path) -> None:
    """A small BERT with mean pooling, as sentence-transformers saves it."""
    import torch
    import transformers

    path.mkdir(parents=True)
    torch.manual_seed(0)
    sizes = dict(hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3)
    fast = word_pieces()
    config = transformers.BertConfig(
        vocab_size=fast.get_vocab_size() + 8, max_position_embeddings=MAX_POSITIONS, **sizes
    )
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(path)
    fast.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "model_max_length": 40} | _BERT
    put(path / "tokenizer_config.json", settings)
    kind = "sentence_transformers.models."
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"idx": i, "name": str(i), "path": p, "type": kind + n} for i, (p, n) in enumerate(names.items())]
    put(path / "modules.json", modules)
    put(path / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, "pooling_mode_mean_tokens": True})
    (path / "2_Normalize").mkdir()
    put(path / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})
    put(path / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "passage": "passage: "}})
