"""Vocabularies of GGUF files give the ids of the tokenizers they were made of."""

import itertools
import json
import os
import random
from pathlib import Path

import gguf
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from astra_mpi.convert.gguf.byte_pairs import CUTS
from astra_mpi.convert.gguf.header import read_header
from astra_mpi.convert.gguf.metadata import Metadata
from astra_mpi.convert.gguf.tokenizer import chat_template, text_files
from astra_mpi.convert.tokenizer import read_tokenizer
from astra_mpi.errors import InputError
from helpers.minilm import minilm_folder

TEXTS = [
    "", " ", "a", " a", "  two  spaces ", "\n", "\n\n\t x\n", "Hello, world! It's I'LL we've 're DON'T",
    "1 12 123 1234567 3.14159 1,000,000 ½ ² ٣٤٥ Ⅷ",
    "x = [i**2 for i in range(10) if i % 2 == 0]  # odd\n\treturn x\n",
    '{"key": "value", "list": [1, 2.5, null]}\r\n',
    "def f(self, *args):\n    if not args:\n        raise ValueError()\n",
    "日本語のテキスト、漢字とかな。中文字符,한국어 문장입니다.", "नमस्ते दुनिया שלום עולם مرحبا بالعالم Привет ΑΒΓ",
    "🎉👩‍👩‍👧‍👦🏽 emoji 🇩🇪!", "naïve café Ångström ﬁ İstanbul ẞ", "a\u0301 combining\u200b zero\u00a0nbsp\u3000wide",
    "UPPER lower CamelCase snake_case http://www.example.com/a?b=c&d=1 --flag -x <tag/> ...!!! ??? ¡¿",
    "trailing   \n  \n", "<s> </s> <|end|> <|im_start|>user\nHi<|im_end|>",
]  # fmt: skip
LETTERS = "ab 1é\n\t.,'A日 🎉-_/"


def corpus():
    draw = random.Random(0)
    return TEXTS + ["".join(draw.choice(LETTERS) for _ in range(draw.randrange(1, 40))) for _ in range(100)]


def write_vocabulary(path, model, tokens, **keys):
    """A GGUF file with nothing but a vocabulary. keys: behind tokenizer.ggml."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    for key, value in keys.items():
        name = f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def converted(path, folder):
    """The tokenizer of a GGUF file, as `convert` makes it."""
    header = read_header(path)
    for name, contents in text_files(Metadata(path, header.metadata, {})).items():
        (folder / name).write_text(json.dumps(contents))
    return read_tokenizer(folder, {"model_type": "llama"}, {}).fast


def byte_level(split, vocab_size=600):
    """A byte-level BPE that is trained on the corpus, and that cuts as `split` says."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = split
    fast.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    fast.train_from_iterator(corpus() * 2, trainer)
    return fast


def parts(fast):
    """-> (tokens by id, merges as GGUF has them, types)."""
    model = json.loads(fast.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {token.content for token in fast.get_added_tokens_decoder().values()}
    merges = [" ".join(pair) for pair in model["merges"]]
    return tokens, merges, [3 if token in special else 1 for token in tokens]


def splits():
    """Names of `tokenizer.ggml.pre` -> the pre-tokenizer of the models that it is named for."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS as THEIRS

    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    found = {"gpt-2": gpt2, "olmo": gpt2, "smollm": digits, "starcoder": digits, "refact": digits}
    for name in ("llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35"):
        cut = pre_tokenizers.Split(Regex(THEIRS[name]), "isolated")
        found[name] = pre_tokenizers.Sequence([cut, bytes_only])
    return found


@pytest.mark.parametrize(
    "pre", ["gpt-2", "olmo", "smollm", "starcoder", "llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35"]
)
def test_byte_pairs(tmp_path, pre):
    fast = byte_level(splits()[pre])
    tokens, merges, kinds = parts(fast)
    keys = dict(pre=pre, merges=merges, token_type=kinds, bos_token_id=1, eos_token_id=2, add_bos_token=False)
    write_vocabulary(tmp_path / "v.gguf", "gpt2", tokens, **keys)
    ours = converted(tmp_path / "v.gguf", tmp_path)
    for text in corpus():
        assert ours.encode(text).ids == fast.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids) == fast.decode(fast.encode(text).ids)


def test_every_way_of_cutting_can_be_read(tmp_path):
    fast = byte_level(splits()["gpt-2"], 300)
    tokens, merges, kinds = parts(fast)
    for pre in {cuts: name for name, cuts in CUTS.items()}.values():
        write_vocabulary(tmp_path / "v.gguf", "gpt2", tokens, pre=pre, merges=merges, token_type=kinds)
        ours = converted(tmp_path / "v.gguf", tmp_path)
        for text in TEXTS:
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text
    write_vocabulary(tmp_path / "v.gguf", "gpt2", tokens, pre="gpt-9", merges=merges)
    with pytest.raises(InputError, match=r"v\.gguf: tokenizer\.ggml\.pre = 'gpt-9' is not supported; known are gpt-2"):
        converted(tmp_path / "v.gguf", tmp_path)


def test_gpt2_itself(tmp_path):
    folder = Path(os.environ.get("GPT2_TOKENIZER", ""))
    if not (folder / "encoder.json").is_file():
        pytest.skip("set GPT2_TOKENIZER to a folder with encoder.json and vocab.bpe of OpenAI's GPT-2")
    vocab = json.loads((folder / "encoder.json").read_text())
    merges = (folder / "vocab.bpe").read_text().split("\n")[1:-1]
    theirs = Tokenizer(models.BPE(vocab, [tuple(merge.split()) for merge in merges]))
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens = sorted(vocab, key=vocab.get)
    write_vocabulary(tmp_path / "v.gguf", "gpt2", tokens, pre="gpt-2", merges=merges, eos_token_id=50256)
    ours = converted(tmp_path / "v.gguf", tmp_path)
    assert all(ours.encode(text).ids == theirs.encode(text).ids for text in corpus())


SCORED = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]


def scored_vocabulary():
    """Pieces with scores, as a SentencePiece model of pairs has them: the earlier made, the better."""
    fast = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.train_from_iterator(corpus() * 2, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    model = json.loads(fast.to_str())["model"]
    made = ["".join(pair) for pair in model["merges"]]
    pieces = [*made, *(piece for piece in model["vocab"] if piece not in set(made))]
    pieces = [piece for piece in dict.fromkeys(pieces) if piece not in SCORED]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces)]
    return SCORED + pieces, [0.0] * 259 + [-float(i) for i in range(len(pieces))], kinds


def joined_by_score(text, ids, scores):
    """llama.cpp's llm_tokenizer_spm: join the neighbours whose union scores highest, the leftmost of equals."""
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        pairs = enumerate(itertools.pairwise(symbols))
        unions = [(scores[ids[a + b]], -i) for i, (a, b) in pairs if a + b in ids]
        if not unions:
            break
        i = -max(unions)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
    found = []
    for symbol in symbols:
        raw = [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
        found += [ids[symbol]] if symbol in ids else raw
    return found


def test_scored_pieces(tmp_path):
    tokens, scores, kinds = scored_vocabulary()
    ends = dict(bos_token_id=1, eos_token_id=2, unknown_token_id=0)
    write_vocabulary(tmp_path / "v.gguf", "llama", tokens, scores=scores, token_type=kinds, **ends)
    ours = converted(tmp_path / "v.gguf", tmp_path)
    ids = {token: i for i, token in enumerate(tokens)}
    for text in corpus():
        if "<s>" not in text:
            assert ours.encode(text).ids == [1, *joined_by_score(text, ids, scores)], text
            assert ours.decode(ours.encode(text).ids) == text
    assert ours.encode("a</s>b").ids[1:] == [*joined_by_score("a", ids, scores), 2, *joined_by_score("b", ids, scores)]


def test_sentence_piece_itself(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("\n".join(text for text in corpus() if "\n" not in text and text.strip()))
    for kind, model in (("bpe", "llama"), ("unigram", "t5")):
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text"), model_prefix=str(tmp_path / kind), model_type=kind, vocab_size=420,
            byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
            hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
        )  # fmt: skip
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / f"{kind}.model"))
        n = range(theirs.get_piece_size())
        kinds = [2 if theirs.is_unknown(i) else 3 if theirs.is_control(i) else 6 if theirs.is_byte(i) else 1 for i in n]
        tokens, scores = [theirs.id_to_piece(i) for i in n], [theirs.get_score(i) for i in n]
        keys = dict(scores=scores, token_type=kinds, bos_token_id=1, eos_token_id=2, add_bos_token=False)
        write_vocabulary(tmp_path / "v.gguf", model, tokens, **keys, add_eos_token=False)
        ours = converted(tmp_path / "v.gguf", tmp_path)
        for text in corpus():
            if "<s>" not in text and "▁" not in text and text:
                assert ours.encode(text).ids == theirs.encode(text), (kind, text)


def test_unigram_pieces(tmp_path):
    fast = Tokenizer(models.Unigram())
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", special_tokens=special, show_progress=False)
    fast.train_from_iterator(corpus() * 2, trainer)
    vocab = json.loads(fast.to_str())["model"]["vocab"]
    tokens, scores = (list(column) for column in zip(*vocab, strict=True))
    keys = dict(scores=scores, token_type=[3, 3, 2, *[1] * (len(tokens) - 3)], eos_token_id=1, unknown_token_id=2)
    write_vocabulary(tmp_path / "v.gguf", "t5", tokens, **keys)
    ours = converted(tmp_path / "v.gguf", tmp_path)
    for text in corpus():
        if "<s>" not in text:
            assert ours.encode(text).ids == [*fast.encode(text).ids, 1], text


def test_word_pieces(tmp_path):
    theirs = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    theirs.no_truncation()
    theirs.no_padding()
    vocab = theirs.get_vocab()
    pieces = sorted(vocab, key=vocab.get)
    # as llama.cpp's convert_hf_to_gguf.py stores them
    tokens = [p if p[0] + p[-1] == "[]" and len(p) > 2 else p[2:] if p.startswith("##") else f"▁{p}" for p in pieces]
    roles = dict(cls_token_id=101, seperator_token_id=102, unknown_token_id=100, padding_token_id=0, mask_token_id=103)
    kinds = [3 if piece in ("[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]") else 1 for piece in pieces]
    write_vocabulary(tmp_path / "v.gguf", "bert", tokens, token_type=kinds, **roles)
    ours = converted(tmp_path / "v.gguf", tmp_path)
    for text in corpus():
        assert ours.encode(text).ids == theirs.encode(text).ids, text


def test_templates_and_ends(tmp_path):
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "<think>"]
    keys = dict(pre="gpt-2", merges=["a b"], token_type=[3, 3, 3, 1, 1, 1, 4], bos_token_id=1, eos_token_id=2)
    write_vocabulary(tmp_path / "v.gguf", "gpt2", tokens, **keys, add_bos_token=True, eot_token_id=5)
    header = read_header(tmp_path / "v.gguf")
    header.metadata["tokenizer.chat_template"] = "{{ messages }}"
    header.metadata.update({"general.sampling.temp": 0.7, "general.sampling.top_k": 20})
    files = text_files(Metadata(tmp_path / "v.gguf", header.metadata, {}))
    assert files["generation_config.json"] == {
        "eos_token_id": [2, 5, 0], "temperature": 0.7, "top_k": 20, "do_sample": True
    }  # fmt: skip
    assert files["tokenizer_config.json"]["chat_template"] == "{{ messages }}"
    assert files["tokenizer_config.json"]["eos_token"] == "<|im_end|>"
    fast = converted(tmp_path / "v.gguf", tmp_path)
    assert fast.encode("ab<think>a<|im_end|>").ids == [1, 5, 6, 3, 2]
    assert fast.decode([5, 6, 2]) == "ab<think>"
    named = {"tokenizer.chat_templates": ["tool_use"], "tokenizer.chat_template.tool_use": "{{ tools }}"}
    header.metadata.update(named)
    several = chat_template(Metadata(tmp_path / "v.gguf", header.metadata, {}))
    assert several == [
        {"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}
    ]  # fmt: skip
