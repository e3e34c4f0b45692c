"""Token ids, passages and strict reading of text."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from astra_mpi.errors import InputError
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.passages import passages
from astra_mpi.inputs.text import Tokenizer
from helpers.tokenizers import WORDS, byte_pairs


def wordpiece():
    """As BERT's: words split at white space and punctuation, [CLS] and [SEP] around a text."""
    letters = [prefix + c for prefix in ("", "##") for c in "abcdefghijklmnopqrstuvwxyz"]
    names = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *letters])
    fast = FastTokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(strip_accents=False)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.add_special_tokens(["[CLS]", "[SEP]", "[PAD]"])
    fast.enable_padding(length=128)  # as sentence encoders are saved
    fast.enable_truncation(8)
    return fast.to_str()


TOKENIZERS = [Tokenizer(wordpiece()), Tokenizer(byte_pairs())]


def squeeze(text):
    return re.sub(r"\s", "", text)


def test_encode_is_unpadded_and_cut():
    short, long, empty = TOKENIZERS[0].encode(["The fox", "a lazy dog " * 9, ""], max_tokens=10)
    assert short.dtype == np.int32
    assert short.tolist() == [2, 4, 7, 3]
    assert len(long) == 10 and long[0] == 2 and long[-1] == 3
    assert empty.tolist() == [2, 3]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_decode(tokenizer):
    text = "the quick brown fox"
    assert tokenizer.decode(tokenizer.encode([text], 100)[0]) == text


def test_encoding_does_not_change_later_counts():
    text = "a lazy dog " * 9
    assert TOKENIZERS[0].count([text]) == [29]
    TOKENIZERS[0].encode([text], 5)
    assert TOKENIZERS[0].count([text]) == [29]


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_no_room_beside_special_tokens(max_tokens):
    with pytest.raises(InputError, match=f"max_tokens = {max_tokens} leaves no room beside 2 special tokens"):
        TOKENIZERS[0].encode(["a"], max_tokens)
    with pytest.raises(InputError, match="leaves no room"):
        passages("a", TOKENIZERS[0], max_tokens)


def test_unreadable_tokenizer():
    with pytest.raises(InputError, match="tokenizer cannot be read"):
        Tokenizer('{"version": "1.0"}')


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install 'astra-mpi\[text\]'"):
        Tokenizer("{}")


# --- passages ------------------------------------------------------------------------------------------------------


def test_paragraphs_are_packed_whole_and_greedily():
    text = "the fox .\n\na dog .\n \nit rains .\n\nin spain ."
    assert passages(text, TOKENIZERS[0], 8) == ["the fox .\n\na dog .", "it rains .\n\nin spain ."]
    assert passages(text, TOKENIZERS[0], 100) == [text]


def test_long_paragraph_is_cut_between_sentences():
    text = "the fox jumps . a dog ! it rains in spain ?"
    assert passages(text, TOKENIZERS[0], 9) == ["the fox jumps . a dog !", "it rains in spain ?"]


def test_long_sentence_is_cut_between_words():
    assert passages("the quick brown fox jumps", TOKENIZERS[0], 4) == ["the quick", "brown fox", "jumps"]


def test_long_word_is_cut_between_characters():
    assert passages("xyzz", TOKENIZERS[0], 4) == ["xy", "zz"]


@pytest.mark.parametrize("text", ["", " \n\n\t "])
def test_nothing_to_cut(text):
    assert passages(text, TOKENIZERS[0], 8) == []


PIECES = st.sampled_from(
    [*WORDS, "\n\n", "\n", "\r\n\r\n", " ", "  ", ". ", "。", "…", "naïve", "日本語", "👩‍👩‍👧", "x" * 40]
)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@given(text=st.lists(PIECES | st.text(max_size=8)).map("".join), max_tokens=st.integers(7, 40))
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_and_no_passage_is_too_long(tokenizer, text, max_tokens):
    cut = passages(text, tokenizer, max_tokens)
    assert squeeze("".join(cut)) == squeeze(text)
    assert all(passage == passage.strip() and passage for passage in cut)
    assert max(tokenizer.count(cut), default=0) <= max_tokens


def test_character_of_several_tokens_needs_room():
    with pytest.raises(InputError, match="max_tokens = 2 is too small for one character"):
        passages("👩", TOKENIZERS[1], 2)


# --- reading -------------------------------------------------------------------------------------------------------


def test_read_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffGröße\r\n".encode())
    assert read_text(path) == "Größe\r\n"


def test_read_text_in_another_encoding(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("Größe".encode("latin1"))
    with pytest.raises(InputError, match=r"a\.txt is not UTF-8 at byte 2.*iconv"):
        read_text(path)


def test_read_missing_text(tmp_path):
    with pytest.raises(InputError, match=r"a\.txt cannot be read \(No such file"):
        read_text(tmp_path / "a.txt")


def test_prompts_begin_as_texts_do_and_end_open():
    """What the tokenizer puts before a text is kept, what it puts after one is not."""
    bert, gpt = Tokenizer(wordpiece(), open_ended=True), Tokenizer(byte_pairs(), open_ended=True)
    assert [ids.tolist() for ids in bert.encode(["The fox", ""], 9)] == [[2, 4, 7], [2]]
    assert bert.encode(["The fox"], 2)[0].tolist() == [2, 4] and bert.n_special == 1
    with pytest.raises(InputError, match="no room beside 1 special"):
        bert.encode(["The fox"], 1)
    text, nothing = gpt.encode([" ".join(WORDS), ""], 999)
    assert gpt.decode(text) == " ".join(WORDS) and nothing.shape == (0,)


def test_prompts_of_llama_keep_their_first_token():
    """The layout of Llama 3: byte level, then a template with a begin token, here with an end token as well."""
    fast = FastTokenizer.from_str(byte_pairs())
    fast.add_special_tokens(["<begin>", "<end>"])
    begin, end = fast.token_to_id("<begin>"), fast.token_to_id("<end>")
    template = processors.TemplateProcessing("<begin> $A <end>", special_tokens=[("<begin>", begin), ("<end>", end)])
    fast.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tokenizer = Tokenizer(fast.to_str(), open_ended=True)
    (ids,) = tokenizer.encode(["the fox<end>"], 99)
    assert ids[0] == begin and ids[-1] == end and (ids == end).sum() == 1  # the user's own
    assert tokenizer.encode([""], 99)[0].tolist() == [begin]


def test_special_tokens_by_their_names():
    assert TOKENIZERS[1].special_id("no such token") is TOKENIZERS[1].special_id(".") is None
    fast = FastTokenizer.from_str(byte_pairs())
    fast.add_special_tokens(["<end>"])
    assert Tokenizer(fast.to_str()).special_id("<end>") == fast.token_to_id("<end>")


def test_tokenizer_with_ids_beyond_the_vocabulary():
    n = len(FastTokenizer.from_str(byte_pairs()).get_vocab())
    TOKENIZERS[1].check_fits(n)
    TOKENIZERS[1].check_fits(n + 7)  # some models round their vocabulary up
    with pytest.raises(InputError, match=rf"ids up to {n - 1} .* vocabulary ends at {n - 2}; convert"):
        TOKENIZERS[1].check_fits(n - 1)
