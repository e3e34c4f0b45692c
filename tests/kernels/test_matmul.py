"""Products by BLAS, shared by threads: the same numbers, whichever side is cut."""

import numpy as np
import pytest

from astra_mpi.kernels.cpu import _team
from astra_mpi.kernels.cpu._matmul import matmul


@pytest.mark.parametrize("m, k, n", [(700, 64, 65), (3, 512, 2001), (1, 1, 1), (0, 5, 4), (129, 128, 129)])
@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_threads_share_rows_or_columns(m, k, n, n_threads):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32).T
    wide = np.full((m, n + 2), 7, np.float32)
    try:
        _team.set_size(n_threads)
        made = matmul(x, weight)
        matmul(x, weight, wide[:, 1:-1])
    finally:
        _team.set_size(1)
    expected = x.astype(np.float64) @ weight.astype(np.float64)
    np.testing.assert_allclose(made, expected, atol=1e-5 * k**0.5)
    np.testing.assert_allclose(wide[:, 1:-1], expected, atol=1e-5 * k**0.5)
    assert (wide[:, [0, -1]] == 7).all()
    assert made.dtype == np.float32
