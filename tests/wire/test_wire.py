"""Rows as bytes and back."""

import numpy as np
import pytest

from astra_mpi.errors import AstraError
from astra_mpi.strategies.wire import WIRES, pack_rows, row_bytes, unpack_rows


def there_and_back(x, wire):
    message = pack_rows(x, wire)
    assert (message.dtype, message.shape) == (np.uint8, (len(x) * row_bytes(x.shape[1], wire),))
    return unpack_rows(message.reshape(len(x), row_bytes(x.shape[1], wire)), wire)


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("n", [0, 1, 7])
def test_error_is_at_most_half_a_step(wire, n):
    x = np.random.default_rng(n).normal(0, 3, (n, 9)).astype(np.float32)
    back = there_and_back(x, wire)
    assert back.dtype == np.float32
    largest = np.abs(x).max(axis=1, keepdims=True, initial=0)
    half = {"float32": 0 * x, "float16": np.abs(x) * 2.0**-11, "int8": largest / 254 * np.ones_like(x)}[wire]
    assert (np.abs(back - x) <= half * (1 + 1e-5)).all()


def test_int8_scales_rows_apart_and_rounds_ties_to_even():
    x = np.array([[127, -127, 0.5, 1.5, -2.5], [1.27, 0.01, 0, 0, -1.27], [0, 0, 0, 0, 0]], np.float32)
    want = [[127, -127, 0, 2, -2], [1.27, 0.01, 0, 0, -1.27], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(there_and_back(x, "int8"), want, atol=1e-7)


def test_int8_bytes():
    message = pack_rows(np.array([[254, -2]], np.float32), "int8")
    assert message.tobytes() == np.float32(2).tobytes() + bytes([127, 255])


def test_int8_of_the_smallest_numbers_is_zero():
    with np.errstate(all="raise"):
        assert not there_and_back(np.full((1, 3), 1e-44, np.float32), "int8").any()


def test_strided_rows():
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    for wire in WIRES:
        np.testing.assert_array_equal(there_and_back(x[:, 4:], wire), there_and_back(x[:, 4:].copy(), wire))


def test_beyond_float16():
    with pytest.raises(AstraError, match=r"activation of 7e\+04 is beyond float16; use wire int8"):
        pack_rows(np.array([[7e4]], np.float32), "float16")
