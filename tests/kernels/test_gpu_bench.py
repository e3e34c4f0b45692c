"""The kernel bench runs from end to end, at tiny sizes with emulated kernels; what it says without a GPU."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from helpers.cuda_emulation.devices import device

JOB = Path(__file__).resolve().parents[2] / "jobs" / "bench" / "gpu_bench.py"


@pytest.fixture
def job():
    spec = importlib.util.spec_from_file_location("gpu_bench", JOB)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_row(job, tmp_path, capsys):
    path = tmp_path / "rows.json"
    with device(0, races=False):
        assert job.main(["--small", "--repeats", "1", "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    assert set(result["ceilings"]) == {"float32", "tf32", "float16", "copy"}
    names = [row["case"] for row in result["rows"]]
    assert len(names) == len(set(names)) == 2 + 6 + 4 + 2 + 2
    for row in result["rows"]:
        assert row["ours_ms"] > 0
        assert row["limit_ms"] > 0
        assert row["of_limit"] == pytest.approx(row["limit_ms"] / row["ours_ms"])
        assert row["torch_ms"] is None  # no PyTorch with CUDA
    assert all(name in capsys.readouterr().out for name in ("stand-in",))


def test_limits_are_those_of_the_shapes(job):
    """The full sizes' multiply-adds and bytes, from the issue's table."""
    with device(0, races=False) as cp:
        bench = job.Bench(cp, 1, small=False)
        encode = list(job.encode_cases(bench))
        assert [case.multiply_adds for case in encode] == [65536 * 768 * 1024] * 2
        tables = next(job.table_cases(bench))
        assert tables.moved_bytes == 12288 * (1536 * 4 + 4)
        plain, counted = list(job.attention_cases(bench))[:2]
        assert plain.multiply_adds == 2 * 16 * 4096 * 16384 * 64
        assert counted.multiply_adds == 2 * 16 * 4096 * (4096 + 1024) * 64
        new = next(job.decode_cases(bench))
        assert new.moved_bytes == 2 * 8192 * 2 * 8 * 128


def test_attention_rows_agree(job):
    """Counted or not, the bench's attention is the same."""
    with device(0, races=False) as cp:
        bench = job.Bench(cp, 1, small=True)
        answers = []
        for counted in (False, True):
            job.rng = np.random.default_rng(5)
            ours, _ = job._attention(bench, 2, 16, 20, 50, 8, np.float32, counted)
            answers.append(ours().get())
    assert np.abs(answers[0] - answers[1]).max() < 1e-5


def test_without_a_gpu(job, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    assert job.main([]) == 2
    assert "needs CuPy" in capsys.readouterr().err
