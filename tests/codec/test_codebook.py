"""Codebooks: shapes and padding, encode and decode, refusals, the digest."""

import dataclasses

import numpy as np
import pytest

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.errors import InputError
from astra_mpi.kernels import cpu, reference


def entries(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def nearest(x, table):
    """argmin_k ||table_k - x||^2 in float64, for x (n, W) and table (K, W)."""
    return ((x[:, None].astype(np.float64) - table) ** 2).sum(axis=2).argmin(axis=1)


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize(("width", "groups"), [(12, 3), (7, 3), (5, 4), (9, 1)])
def test_grouped_is_nearest_per_group_of_the_padded_vector(kernels, width, groups):
    rng = np.random.default_rng(width)
    w = -(-width // groups)
    book = Codebook("grouped", entries(rng, groups, 11, w), width)
    x = entries(rng, 23, width)
    codes = book.encode(x, kernels)
    padded = np.zeros((23, groups * w), np.float32)
    padded[:, :width] = x
    expected = np.stack([nearest(padded[:, g * w : (g + 1) * w], book.entries[g]) for g in range(groups)], axis=1)
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == np.uint8
    decoded = np.concatenate([book.entries[g][codes[:, g]] for g in range(groups)], axis=1)[:, :width]
    np.testing.assert_array_equal(book.decode(codes, kernels), decoded)
    assert book.decode(codes, kernels).flags.c_contiguous


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
def test_residual_stages_quantise_what_is_left(kernels):
    rng = np.random.default_rng(1)
    book = Codebook("residual", entries(rng, 3, 300, 7), 7)
    x = entries(rng, 19, 7)
    codes = book.encode(x, kernels)
    rest = x.astype(np.float64)
    for stage in range(3):
        expected = nearest(rest, book.entries[stage])
        np.testing.assert_array_equal(codes[:, stage], expected)
        rest = rest - book.entries[stage][expected]
    assert codes.dtype == np.uint16
    np.testing.assert_allclose(x - book.decode(codes, kernels), rest, atol=8 * np.finfo(np.float32).eps * 10)


def test_half_norms_come_from_the_entries():
    book = Codebook("residual", entries(np.random.default_rng(2), 2, 5, 8), 8)
    np.testing.assert_allclose(book.half_norms, (book.entries.astype(np.float64) ** 2).sum(axis=2) / 2, rtol=1e-6)


@pytest.mark.parametrize("kernels", [reference, cpu], ids=["reference", "cpu"])
def test_keys_and_values_side_by_side(kernels):
    rng = np.random.default_rng(3)
    keys, values = (Codebook("residual", entries(rng, 2, 9, 6), 6) for _ in range(2))
    block = BlockCodec((keys, values))
    kv = entries(rng, 13, 12)
    codes = block.encode(kv, kernels)
    assert (block.n_codes, block.size, block.width) == (4, 9, 12)
    np.testing.assert_array_equal(codes[:, :2], keys.encode(kv[:, :6].copy(), kernels))
    np.testing.assert_array_equal(codes[:, 2:], values.encode(kv[:, 6:].copy(), kernels))
    decoded = block.decode(codes, kernels)
    np.testing.assert_array_equal(decoded[:, :6], keys.decode(codes[:, :2].copy(), kernels))
    np.testing.assert_array_equal(decoded[:, 6:], values.decode(codes[:, 2:].copy(), kernels))


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("kind", ["grouped", "residual"])
def test_few_tokens(kind, n):
    book = Codebook(kind, np.zeros((2, 4, 4 if kind == "grouped" else 7), np.float32), 7)
    codes = book.encode(np.ones((n, 7), np.float32), cpu)
    assert codes.shape == (n, 2)
    assert book.decode(codes, cpu).shape == (n, 7)


@pytest.mark.parametrize(
    ("kind", "shape", "width", "says"),
    [
        ("product", (1, 2, 3), 3, "kind 'product'"),
        ("grouped", (2, 3), 3, "shape"),
        ("grouped", (2, 0, 3), 6, "non-empty"),
        ("grouped", (2, 4, 3), 7, "needs 4"),
        ("residual", (2, 4, 3), 6, "needs 6"),
        ("residual", (1, 65537, 1), 1, "limit is 65536"),
    ],
)
def test_refused_shapes(kind, shape, width, says):
    with pytest.raises(InputError, match=says):
        Codebook(kind, np.zeros(shape, np.float32), width)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refused_values(bad):
    table = np.zeros((2, 3, 4), np.float32)
    table[1, 2, 3] = bad
    with pytest.raises(InputError, match="NaN"):
        Codebook("residual", table, 4)


def make_codec(config, seed=0):
    rng = np.random.default_rng(seed)
    shape = (config.n_codebooks, config.codebook_size, 6 // (config.groups if config.kind == "grouped" else 1))
    n_books = 2 if config.site == "kv" else 1
    books = [Codebook(config.kind, entries(rng, *shape), 6) for _ in range(2 * n_books)]
    return Codec(config, (BlockCodec(tuple(books[:n_books])), BlockCodec(tuple(books[n_books:]))))


def test_codec_refuses_blocks_that_contradict_its_config():
    config = CodecConfig(kind="grouped", groups=3, codebook_size=8)
    codec = make_codec(config)
    with pytest.raises(InputError, match="block 0"):
        Codec(dataclasses.replace(config, codebook_size=16), codec.blocks)
    with pytest.raises(InputError, match="needs 2"):
        Codec(dataclasses.replace(config, site="kv"), codec.blocks)
    keys = codec.blocks[0].codebooks[0]
    with pytest.raises(InputError, match="differ"):
        BlockCodec((keys, Codebook("grouped", np.zeros((3, 8, 3), np.float32), 9)))


def test_digest_follows_config_and_entries():
    config = CodecConfig(kind="residual", stages=2, codebook_size=8)
    codec = make_codec(config)
    assert codec.digest == make_codec(config).digest
    assert codec.digest != make_codec(config, seed=1).digest
    assert codec.digest != Codec(dataclasses.replace(config, site="normed"), codec.blocks).digest
    assert codec.digest != Codec(config, codec.blocks[::-1]).digest
