"""Every row of docs/explanation/numerics.md at a small size: what it calls the same bits is compared with ==."""

import importlib.util
import sys
from pathlib import Path

import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.files.modelfile import write_model
from astra_mpi.ranks.broadcast import broadcast_text
from helpers.fakes import bert_config, gpt2_config, model_file

pytestmark = pytest.mark.mpi

JOB = Path(__file__).resolve().parents[1] / "jobs" / "bench" / "numerics.py"
spec = importlib.util.spec_from_file_location("numerics_job", JOB)
numerics = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = numerics  # dataclasses look their module up
spec.loader.exec_module(numerics)

CODEC = CodecConfig(kind="grouped", codebook_size=40, encoder="subspace")
MODELS = {"bert": bert_config(), "gpt2": gpt2_config()}
#: float32 has 6e-8 per operation; sums of up to 40 terms, two blocks with norms
LAST_BITS = 2e-5
#: rounding of 2^-11, 2^-8 and 1/254 of a value, grown by the blocks; other codes or keys change anything
LARGEST = {"float16": 0.02, "bfloat16": 0.2, "int8": 0.4}


@pytest.fixture(params=MODELS)
def bench(request, comm, tmp_path):
    if (request.param == "bert") == (comm.size in (2, 8)):
        pytest.skip("a family at every other number of ranks; the rows are the same")
    folder = Path(broadcast_text(comm, str(tmp_path)))
    source = folder / "model.h5"
    if comm.rank == 0:
        write_model(source, model_file(MODELS[request.param], CODEC))
    return numerics.Bench(comm, numerics.store(source, folder, comm), 19, 3)


def test_rows(bench, comm):
    if comm.size > 4:
        pytest.skip("takes long, and says the same of fewer ranks")
    wrong = {}
    seen = set()
    for row in filter(bench.applies, numerics.rows()):
        first, second = bench.answers(row.first), bench.answers(row.second)
        assert abs(first).max() > 0
        seen.add(row.changes)
        if row.changes == numerics.SAME:
            good = (first == second).all()
        else:
            found = numerics.difference(first, second)
            good = found <= LAST_BITS if row.changes == numerics.LAST_BITS else lossy_as_said(row, found, comm.size)
        if not good:
            wrong[row.what] = numerics.difference(first, second)
    assert not wrong
    assert seen == {numerics.SAME, numerics.LAST_BITS, numerics.LOSSY}


def lossy_as_said(row, found, size):
    """Some change where something is lost, and no more than a type's rounding where it is one."""
    stored = row.second.dtype != "float32"
    if size == 1 and not stored:
        return found == 0
    kind = next((name for name in sorted(LARGEST, key=len, reverse=True) if name in row.what), None)
    return 0 < found < (LARGEST[kind] if kind else 2.0)


def test_models_have_what_all_rows_need(bench):
    decoder = {"decoder"} & bench.has
    assert bench.has == {"codebooks", "one code", "subspace", *decoder}


def test_difference_sees_one_bit():
    ones = numerics.np.ones(3, numerics.np.float32)
    assert numerics.difference(ones, ones.copy()) == 0
    assert numerics.difference(ones, numerics.np.nextafter(ones, 2)) == pytest.approx(2**-23)
    assert numerics.difference(0 * ones, -0.0 * ones) > 0
