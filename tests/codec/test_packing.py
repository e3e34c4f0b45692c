"""Wire packing: exact byte layout and round trip, for any width, any number of tokens and any codes per token."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.received import unpacked
from astra_mpi.kernels import cpu, reference

BACKENDS = pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])


@st.composite
def messages(draw):
    """(codes (n, C) below 2^bits, bits), the codes in the dtype of their codebook."""
    bits = draw(st.integers(0, 16))
    shape = draw(st.sampled_from([0, 1, 7, 8, 9, 33])), draw(st.integers(1, 9))
    dtype = np.uint8 if bits <= 8 else np.uint16
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, dtype=dtype, endpoint=False), bits


def as_bytes(codes, bits):
    """The message by big integers: code i shifted left by i * bits, little-endian."""
    number = sum(int(code) << (i * bits) for i, code in enumerate(codes.flat))
    return number.to_bytes((codes.size * bits + 7) // 8, "little")


@BACKENDS
@settings(max_examples=200, deadline=None)
@given(case=messages())
def test_layout_and_round_trip(kernels, case):
    codes, bits = case
    message = kernels.pack(codes, bits)
    assert message.dtype == np.uint8
    assert message.tobytes() == as_bytes(codes, bits)
    back = kernels.unpack(message, *codes.shape, bits)
    assert back.dtype == codes.dtype
    assert back.shape == codes.shape
    assert np.array_equal(back, codes)


@BACKENDS
def test_layout_is_numpy_little_bit_order(kernels):
    codes = np.array([[1, 6], [5, 2]], np.uint8)
    bits = np.array([1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0])  # each code's three bits, least significant first
    assert np.array_equal(kernels.pack(codes, 3), np.packbits(bits, bitorder="little"))


@BACKENDS
def test_one_code_needs_no_bits(kernels):
    message = kernels.pack(np.zeros((5, 3), np.uint8), 0)
    assert message.size == 0
    back = kernels.unpack(message, 5, 3, 0)
    assert back.dtype == np.uint8
    assert np.array_equal(back, np.zeros((5, 3)))


@BACKENDS
def test_only_the_low_bits_are_sent(kernels):
    codes = np.random.default_rng(0).integers(0, 65536, (7, 3)).astype(np.uint16)
    assert np.array_equal(kernels.pack(codes, 5), kernels.pack(codes % 32, 5))


@BACKENDS
def test_strided_codes(kernels):
    codes = np.random.default_rng(0).integers(0, 1000, (9, 6)).astype(np.uint16)
    assert np.array_equal(kernels.pack(codes[:, ::2], 10), kernels.pack(codes[:, ::2].copy(), 10))


@BACKENDS
@pytest.mark.parametrize("n_bytes", [0, 11, 13])
def test_wrong_length_is_refused(kernels, n_bytes):
    with pytest.raises(ValueError, match="has 12 bytes"):
        kernels.unpack(np.zeros(n_bytes, np.uint8), 4, 2, 12)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_messages_of_all_ranks(data):
    """What is heard is there, what is missing is the mean, and the rest zero, however messages are unpacked."""
    n_codes, size = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([2, 16, 200, 256, 300]))
    book = Codebook("residual", np.zeros((n_codes, size, 3), np.float32), 3)
    codec, rng = BlockCodec((book,)), np.random.default_rng(0)
    counts = np.array(data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=4)))
    ranks = range(len(counts))
    heard = data.draw(st.sets(st.sampled_from(ranks)) | st.just(set(ranks)))
    missing = np.array([data.draw(st.booleans()) for _ in ranks]) & data.draw(st.booleans())
    codes = [rng.integers(0, size, (n, n_codes)).astype(np.uint16 if size > 256 else np.uint8) for n in counts]
    messages = [codec.pack(one, cpu) for one in codes]
    mean = np.full((1, n_codes), 1, codes[0].dtype)
    expected = [
        mean.repeat(len(one), axis=0) if missing[rank] else one if rank in heard else np.zeros_like(one)
        for rank, one in enumerate(codes)
    ]
    found = unpacked(codec, messages, counts, heard, missing, mean, lambda rank: None, cpu)
    assert found.dtype == mean.dtype and np.array_equal(found, np.concatenate(expected))
