"""What NVRTC makes of the kernels: their loops hold what they are there for, and memory is met in wide pieces."""

import sys

import pytest

pytest.importorskip("cupy", reason="CuPy is not installed; pip install 'astra-mpi[cuda-check]'", exc_type=ImportError)
pytest.importorskip("nvidia", reason="NVRTC is not installed; pip install 'astra-mpi[cuda-check]'")
import cuda_code as job


def listing(name, arch="sm_90", **defines):
    return job.disassembled(job.compiled(name, {key: str(value) for key, value in defines.items()}, arch)[0])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_encode_spends_its_time_on_multiply_adds(arch):
    parts = job.stretches(listing("encode", arch, VECTOR=1, CODE="unsigned char"), "nearest")
    loop = sum((kinds for _, kinds in parts if kinds["FFMA"]), job.Counter())  # a label may lie inside it
    assert loop["FFMA"] == 8 * 64  # a step of eight numbers, unrolled
    assert loop["FFMA"] > 0.9 * loop.total()


def test_half_attention_meets_memory_in_wide_pieces():
    code = listing("attention_half", HALF=1, D=64, ROWS=2, WIDE=1)
    kinds = sum((kinds for _, kinds in job.stretches(code, "attend")), job.Counter())
    assert kinds["HMMA"] == 128
    assert "LDGSTS.E.BYPASS.128" in code
    assert ".U16" not in code


def test_the_job_prints_what_it_read(capsys):
    assert job.main(["finish", "finish", "--least", "1"]) == 0
    out = capsys.readouterr().out
    assert "0 bytes spill stores" in out
    assert "EXIT" in out
    with pytest.raises(SystemExit, match=r"finish.cu has no kernel begin"):
        job.main(["finish", "begin"])
    with pytest.raises(SystemExit, match=r"there is no kernels/cuda/start.cu; give one of attention, "):
        job.main(["start", "begin"])


def test_without_nvrtc(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(SystemExit, match=r"NVRTC is not installed .* pip install 'astra-mpi\[cuda-check\]'"):
        job.main(["finish", "finish"])
