"""The emulation of CUDA kernels finds what a GPU would not tell: broken kernels of each kind, and right ones."""

import numpy as np
import pytest

from astra_mpi.kernels.cuda_source import FOLDER
from helpers.cuda_emulation.emulator import COMPILER, ORDERS, EmulationError, Module

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++ to emulate kernels with")


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(shape).standard_normal(shape, dtype=np.float32).astype(dtype)


def run(source, args, block=64, grid=1, shared=0, order=0, half=0):
    module = Module((FOLDER / "common.cuh").read_text() + source, (f"-DHALF={half}", "-DVECTOR=0"), order)
    module.get_function("k")((grid,), (block,), args, shared_mem=shared)


REVERSE = """
extern "C" __global__ void k(float *x, int n) {
    SHARED_ARRAY(float, s, 64);
    s[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.0f;
    __syncthreads();
    if (threadIdx.x < n) x[threadIdx.x] = s[63 - threadIdx.x];
}
"""
WARPS = """
extern "C" __global__ void k(float *x) {
    SHARED_ARRAY(float, s, 64);
    s[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    x[threadIdx.x] = s[threadIdx.x ^ 1];
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_kernel_passes(order):
    x = normal(64)
    expected = x[::-1].copy()
    run(REVERSE, (x, np.int32(64)), order=order)
    assert np.array_equal(x, expected)
    run(WARPS, (x,), order=order)
    assert np.array_equal(x, expected.reshape(32, 2)[:, ::-1].ravel())


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("source", "barrier"), [(REVERSE, "__syncthreads();"), (WARPS, "__syncwarp();")])
def test_a_missing_barrier_is_a_race(order, source, barrier):
    args = (normal(64), np.int32(64))[: 1 + (source is REVERSE)]
    with pytest.raises(EmulationError, match="race in shared memory"):
        run(source.replace(barrier, ""), args, order=order)


def test_a_warp_barrier_does_not_order_warps():
    with pytest.raises(EmulationError, match="race in shared memory"):
        run(WARPS.replace("threadIdx.x ^ 1", "threadIdx.x ^ 32"), (normal(64),))


def test_a_barrier_that_some_never_reach():
    divergent = REVERSE.replace("SHARED", "if (threadIdx.x >= n) return;\n SHARED")
    with pytest.raises(EmulationError, match="already returned"):
        run(divergent, (normal(64), np.int32(40)))


@pytest.mark.parametrize("place", ["x[n]", "x[-9]", "x[900]"])
def test_an_access_outside_of_an_array(place):
    source = REVERSE.replace("__syncthreads();", f"__syncthreads(); if (threadIdx.x == 5) {place} = 1.0f;")
    with pytest.raises(EmulationError, match=r"outside of an array|beside an array"):
        run(source, (normal(61), np.int32(61)))


@pytest.mark.parametrize("half", [0, 1])
def test_a_misaligned_vector(half):
    source = (
        'extern "C" __global__ void k(const real *x, real *y) { float v[STEP]; load_step(x + 1, v); store_step(y, v); }'
    )
    x = normal(8, dtype=np.float16 if half else np.float32)
    module = Module((FOLDER / "common.cuh").read_text() + source, (f"-DHALF={half}", "-DVECTOR=1"))
    with pytest.raises(EmulationError, match="misaligned address"):
        module.get_function("k")((1,), (1,), (x, np.zeros_like(x)))


def test_an_access_outside_of_shared_memory():
    with pytest.raises(EmulationError, match="outside of shared memory"):
        run(REVERSE.replace("s[63 -", "s[64 +"), (normal(64), np.int32(64)))


COPIES = """
extern "C" __global__ void k(__half *x) {
    SHARED_ARRAY(__half, s, 64 * 8);
    copy16(s + threadIdx.x * 8, x + threadIdx.x * 8, true);
    copies_here();
    __syncthreads();
    x[threadIdx.x * 8] = s[(63 - threadIdx.x) * 8];
}
"""


@pytest.mark.parametrize("order", ORDERS)
def test_copies_to_shared_memory(order):
    x = normal(64, 8, dtype=np.float16)
    expected = x[::-1, 0].copy()
    run(COPIES, (x,), order=order, half=1)
    assert np.array_equal(x[:, 0], expected)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (COPIES.replace("copies_here();", ""), "never waited"),
        (COPIES.replace("copies_here();\n    __syncthreads();", "__syncthreads(); copies_here();"), "race"),
        (COPIES.replace("s + threadIdx.x * 8, x", "s + threadIdx.x * 8 + 1, x"), "misaligned"),
    ],
)
def test_copies_that_go_wrong(wrong, error):
    with pytest.raises(EmulationError, match=error):
        run(wrong, (normal(64, 8, dtype=np.float16),), half=1)


def test_a_scalar_of_the_wrong_width():
    with pytest.raises(EmulationError, match="argument 1: the kernel takes 4 bytes, 8 are given"):
        run(REVERSE, (normal(64), 64))
    with pytest.raises(EmulationError, match="takes 2 arguments"):
        run(REVERSE, (normal(64),))


def test_a_shuffle_from_a_lane_that_is_not_there():
    source = 'extern "C" __global__ void k(float *x) { if (threadIdx.x < 16) x[0] = __shfl_xor_sync(~0u, x[1], 1); }'
    with pytest.raises(EmulationError, match="not there"):
        run(source, (normal(64),), block=32)


def test_more_shared_memory_than_asked_for():
    with pytest.raises(EmulationError, match="have not been asked for"):
        run(REVERSE, (normal(64), np.int32(64)), shared=60000)
