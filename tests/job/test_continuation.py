"""Text as it comes: the pieces are the whole, no character is torn, and spaces are where the whole has them."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.convert.llama2c import tokenizer_json
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.job.continuation import TextStream, continuation
from helpers.llama2c import write_tokenizer
from helpers.tokenizers import byte_pairs

TEXT = "the cat sat on  the hat — Zürich 猫👩‍🚀\n\nthat"


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory):
    """As Llama's: spaces are part of words, the first one is dropped, unknown characters are bytes."""
    return Tokenizer(json.dumps(tokenizer_json(write_tokenizer(tmp_path_factory.mktemp("t") / "t.bin"))))


@pytest.fixture(params=["byte pairs", "byte fallback"])
def tokenizer(request, byte_fallback):
    return byte_fallback if request.param == "byte fallback" else Tokenizer(byte_pairs())


def stream(tokenizer, prompt, ids):
    pieces = TextStream(tokenizer, prompt)
    return [*(pieces.push(int(i)) for i in ids), pieces.finish()]


def test_every_cut_of_a_text(tokenizer):
    (ids,) = tokenizer.encode([TEXT], 999)
    for cut in range(1, len(ids)):
        begin = tokenizer.decode(ids[:cut])
        pieces = stream(tokenizer, ids[:cut], ids[cut:])
        assert not any("\ufffd" in piece for piece in pieces)
        assert TEXT.startswith(begin.rstrip("\ufffd")) and "".join(pieces) == continuation(
            tokenizer, ids[:cut], ids[cut:]
        )
        if "\ufffd" not in begin:
            assert begin + "".join(pieces) == TEXT


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_ids_give_the_text_of_the_whole(data, byte_fallback):
    """Also bytes that are no text, but for Llama's tokenizer, which takes characters back then."""
    ascii_only = [*range(3 + 128), *range(259, 277)]
    pairs = (byte_fallback, ascii_only), (Tokenizer(byte_pairs()), range(280))
    tokenizer, ids = data.draw(st.sampled_from(pairs))
    ids = np.array(data.draw(st.lists(st.sampled_from(ids), min_size=2, max_size=12)), np.int32)
    cut = data.draw(st.integers(1, len(ids) - 1))
    assert "".join(stream(tokenizer, ids[:cut], ids[cut:])) == continuation(tokenizer, ids[:cut], ids[cut:])


def test_broken_bytes_do_not_stop_the_stream(byte_fallback):
    """\n, then a byte that begins no character, then letters."""
    (prompt,) = byte_fallback.encode(["the"], 999)
    ids = [3 + 10, 3 + 0x80, *byte_fallback.encode(["cat"], 999)[0][1:]]
    assert "".join(stream(byte_fallback, prompt, ids)) == "\n\ufffd cat"


def test_special_tokens_are_silent(byte_fallback):
    (prompt,) = byte_fallback.encode(["the cat"], 999)
    assert "".join(stream(byte_fallback, prompt, [2, 1])) == ""
    assert continuation(byte_fallback, prompt, np.array([], np.int32)) == ""
