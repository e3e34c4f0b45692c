"""Every CUDA source compiles for the GPUs it is written for, and the stand-in for CuPy offers nothing that CuPy lacks.

Needs the extra `cuda-check` (NVRTC, the CUDA headers and CuPy as wheels), and no GPU.
"""

import re
from pathlib import Path

import pytest

from astra_mpi.kernels.cuda_source import options, source
from helpers.cuda_emulation import fake_cupy

cupy = pytest.importorskip(
    "cupy", reason="CuPy is not installed; pip install 'astra-mpi[cuda-check]'", exc_type=ImportError
)
nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc")
nvidia = pytest.importorskip("nvidia", reason="the CUDA headers are not installed; pip install 'astra-mpi[cuda-check]'")

HEADERS = [str(path) for root in nvidia.__path__ for path in Path(root).glob("*/include")]
CODES = ("unsigned char", "unsigned short")
#: file -> the parameters it is compiled with in use
SOURCES = (
    [("rows", half, vector, {}) for half in (0, 1) for vector in (0, 1)]
    + [("finish", half, 0, {}) for half in (0, 1)]
    + [("codes", half, vector, {"CODE": CODES[half ^ vector]}) for half in (0, 1) for vector in (0, 1)]
    + [("slices", half, 1, {"CODE": CODES[half], "SLICE": 16, "TABLES": n}) for half, n in ((0, 4), (1, 13))]
    + [("encode", 0, vector, {"CODE": CODES[vector]}) for vector in (0, 1)]
    + [("attention", 0, vector, {"D": d}) for vector, d in ((1, 64), (1, 128), (0, 24))]
    + [
        ("attention_half", 1, 0, {"D": d, "ROWS": rows, "WIDE": w})
        for d, rows, w in ((64, 2, 1), (128, 1, 1), (24, 1, 0))
    ]
    + [("decode", half, 1, {"D": d, "HEADS": heads}) for half in (0, 1) for d in (64, 128) for heads in (1, 8)]
    + [("decode", half, vector, {"D": d, "HEADS": 8}) for half in (0, 1) for vector, d in ((0, 250), (1, 256))]
    + [("merge", 0, 0, {"D": 128}), ("integers", 0, 0, {})]
)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("name", "half", "vector", "defines"), SOURCES)
def test_compiles(name, half, vector, defines, arch):
    given = (*options(half, vector, **defines), f"--gpu-architecture={arch}", "--ptxas-options=-v")
    program = nvrtc.createProgram(source(name), f"{name}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*given, *(f"-I{folder}" for folder in HEADERS)))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    log = nvrtc.getProgramLog(program)
    assert nvrtc.getCUBIN(program)[:4] == b"\x7fELF"
    spilled = [int(n) for n in re.findall(r"(\d+) bytes spill stores", log)]
    assert spilled, log
    assert max(spilled) <= 64, f"registers do not suffice:\n{log}"  # bytes: a few numbers are kept outside of a loop


@pytest.mark.parametrize("of", ["module", "ndarray", "cuda"])
def test_the_stand_in_has_only_what_cupy_has(of):
    mine, real = {
        "module": (fake_cupy, cupy),
        "ndarray": (fake_cupy.ndarray, cupy.ndarray),
        "cuda": (fake_cupy.cuda, cupy.cuda),
    }[of]
    own = {"round_trips", "emulation", "n_devices", "compute_types", "installed", "NAMES", "RawKernel"}
    public = [name for name in vars(mine) if not name.startswith("_")]
    borrowed = {"annotations", "sys", "time", "types", "np", "contextmanager", "Module", "Stream", "Event"}
    missing = [name for name in public if name not in own | borrowed and not hasattr(real, name)]
    assert not missing
    for name in ("set_compute_type", "_routines_linalg"):
        assert hasattr(cupy._core, name)
