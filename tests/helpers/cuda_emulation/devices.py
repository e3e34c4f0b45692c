"""What tests of backend "cuda" run on: the stand-in for CuPy with emulated kernels, or CuPy and a GPU."""

import sys
from contextlib import contextmanager

import pytest

from helpers.cuda_emulation import fake_cupy
from helpers.cuda_emulation.emulator import COMPILER

#: a parameter of tests that also run where there is a GPU (tests/gpu.sh)
GPU = pytest.param("gpu", marks=pytest.mark.gpu, id="gpu")


def no_gpu():
    """Why there is no GPU to test on, or None."""
    try:
        import cupy

        return None if cupy.cuda.runtime.getDeviceCount() else "no GPU"
    except Exception as exc:
        return f"no GPU: {exc}"


@contextmanager
def device(how, **emulation):
    """how: "gpu", or the order of threads of emulated kernels (emulator.ORDERS). -> the module that CuPy is."""
    if how == "gpu":
        reason = no_gpu()
        if reason:
            pytest.skip(reason)
        yield sys.modules["cupy"]
    elif COMPILER is None:
        pytest.skip("no g++ to emulate kernels with")
    else:
        with fake_cupy.installed(order=how, **emulation) as module:
            yield module


def xp():
    """The module that is CuPy now."""
    return sys.modules["cupy"]
