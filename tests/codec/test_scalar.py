"""Scalar codes: their kernels, where bits go, and what comes back from a file."""

import json

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import fit_codebook
from astra_mpi.errors import InputError
from astra_mpi.files.codecfile import read_codec, write_codec
from astra_mpi.kernels import cpu, reference
from helpers.fakes import llama_config, random_codec, squared_error

BACKENDS = pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])


@BACKENDS
@settings(max_examples=60, deadline=None)
@given(
    bits=st.lists(st.integers(1, 16), min_size=1, max_size=9), n=st.sampled_from([0, 1, 7, 9]), seed=st.integers(0, 99)
)
def test_columns_of_different_bits_are_one_number_after_another(kernels, bits, n, seed):
    rng, most = np.random.default_rng(seed), max(bits)
    codes = rng.integers(0, 1 << np.array(bits), (n, len(bits))).astype(np.uint8 if most <= 8 else np.uint16)
    number, shift = 0, 0
    for row in codes.tolist():
        for code, width in zip(row, bits, strict=True):
            number, shift = number | code << shift, shift + width
    message = kernels.pack_columns(codes, np.array(bits))
    assert message.tobytes() == number.to_bytes(-(-shift // 8), "little")
    back = kernels.unpack_columns(message, n, np.array(bits))
    assert back.dtype == codes.dtype and np.array_equal(back, codes)
    with pytest.raises(ValueError, match="bytes"):
        kernels.unpack_columns(np.append(message, np.uint8(0)), n, np.array(bits))


@BACKENDS
@pytest.mark.parametrize(("n", "size"), [(0, 4), (1, 1), (33, 2), (33, 7), (9, 256)])
def test_the_nearest_level_the_lower_of_two_and_never_a_repeat(kernels, n, size):
    rng = np.random.default_rng(size)
    levels = np.sort(rng.integers(-40, 40, (5, size)).astype(np.float32), axis=1)
    levels[3:, size // 2 :] = levels[3:, size // 2 : size // 2 + 1]
    x = rng.integers(-100, 100, (n, 5)).astype(np.float32) / 2  # many exact ties
    codes = kernels.encode_levels(x, levels)
    distances = np.abs(levels[None] - x[:, :, None])
    assert np.array_equal(codes, distances.argmin(axis=2))
    assert codes.dtype == np.uint8


def correlated(n=3000, width=12, seed=0):
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.normal(size=(width, width)))[0]
    return (rng.normal(size=(n, width)) * 0.6 ** np.arange(width) @ mix + 3).astype(np.float32)


@pytest.mark.parametrize("bits", [0, 1, 12, 40])
def test_bits_follow_variance_and_error_follows_bits(bits):
    x, config = correlated(), CodecConfig(kind="scalar", vector_bits=bits)
    book = fit_codebook(x, config, 0, cpu)
    assert int(book.code_bits.sum()) == bits
    if bits:
        assert (np.diff(book.code_bits) <= 0).all()  # directions come by descending variance
    error = squared_error(book, x, cpu)
    # reverse water-filling of a Gaussian: no quantiser of vectors is better; scalar ones of fixed length lose
    # at most a quarter of a bit per number in rate at high rates (Gish and Pierce), and less than half a bit in all
    variances = 0.36 ** np.arange(12)

    def bound(rate):
        levels = np.linspace(1e-9, 1, 20000)
        spent = np.maximum(0, 0.5 * np.log2(variances[:, None] / levels)).sum(axis=0)
        return np.minimum(variances[:, None], levels[np.abs(spent - rate).argmin()]).sum() / variances.sum()

    assert error >= 0.97 * bound(bits) and error <= 1.03 * bound(0.5 * bits)
    if book.head is None:
        np.testing.assert_allclose(book.mean, x.mean(axis=0), atol=1e-4)


def test_a_row_decodes_to_the_same_numbers_in_any_company():
    x = correlated()
    book = fit_codebook(x, CodecConfig(kind="scalar", vector_bits=30), 0, cpu)
    codes = book.encode(x[:100], cpu)
    whole = book.decode(codes, cpu)
    assert all(np.array_equal(book.decode(codes[i : i + 1], cpu)[0], whole[i]) for i in range(0, 100, 7))
    np.testing.assert_allclose(whole, book.decode(codes, reference), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        dict(site="kv", kind="scalar", vector_bits=((5, 0), 9)),
        dict(stages=(2, 0), codebook_size=9),
        dict(site="kv", stages=((1, 2), (0, 3)), codebook_size=16),
    ],
)
def test_files_keep_counts_of_blocks(tmp_path, settings):
    codec = random_codec(llama_config(), CodecConfig(**settings))
    with h5py.File(tmp_path / "c.h5", "w") as file:
        write_codec(file, codec)
    with h5py.File(tmp_path / "c.h5") as file:
        back = read_codec(file)
    assert back.config == codec.config and back.digest == codec.digest
    assert json.loads(json.dumps(codec.config.as_dict())) == codec.config.as_dict()
    x = np.random.default_rng(1).normal(size=(5, codec.blocks[0].width)).astype(np.float32)
    for mine, other in zip(codec.blocks, back.blocks, strict=True):
        message = mine.pack(mine.encode(x, cpu), cpu)
        assert len(message) == mine.message_bytes(5) == -(-5 * mine.bits_per_token // 8)
        assert np.array_equal(other.decode(other.unpack(message, 5, cpu), cpu), mine.decode(mine.encode(x, cpu), cpu))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(stages=(2, -1)), "outside"),
        (dict(stages=((1, 2), 2)), "site kv"),
        (dict(stages=()), "empty"),
        (dict(kind="scalar", vector_bits=-1), "outside"),
    ],
)
def test_counts_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        CodecConfig(**settings)


def test_counts_of_other_models_and_too_many_bits():
    codec = random_codec(llama_config(), CodecConfig(stages=(2, 0), codebook_size=9))
    with pytest.raises(InputError, match="2 blocks, the model has 1"):
        Codec(codec.config, codec.blocks[:1])
    with pytest.raises(InputError, match="codec block 0"):
        Codec(codec.config, (codec.blocks[1], codec.blocks[1]))
    with pytest.raises(InputError, match="give fewer"):
        fit_codebook(correlated(), CodecConfig(kind="scalar", vector_bits=113), 0, cpu)
    book = fit_codebook(correlated(), CodecConfig(kind="scalar", vector_bits=9), 0, cpu)
    with pytest.raises(InputError, match="codec block 0"):
        Codec(CodecConfig(kind="scalar", vector_bits=8), (BlockCodec((book,)),))
