"""doctor: what it measures on these ranks, and what it makes of made-up facts."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from astra_mpi.costs.latency import Speeds
from astra_mpi.doctor.diagnosis import examine, gather_json
from astra_mpi.doctor.findings import findings
from astra_mpi.doctor.gpuaware import gpu_answer, try_alone
from astra_mpi.doctor.placement import cpu_quota
from astra_mpi.doctor.probes import kernel_speeds, measure_links
from astra_mpi.kernels import reference
from astra_mpi.kernels.cpu._features import path

VERSIONS = {"mpi": "MPICH 5", "mpi4py": "4.1", "python": "3.11"}
MPIRUN = Path(sys.executable).parent / "mpirun"


def facts(n=2, **changes):
    """Of n ranks on one host; a change is one value for all or a list with one each."""
    plain = dict(
        host="node1", cpus=4, cores=[0, 1, 2, 3], quota=None, threads=1, tasks={"PMI_SIZE": n}, files={},
        versions=VERSIONS, speeds={"gemm": 50e9}, cpu={"has": ["AVX512-BF16"], "refused": ""},
        compute={"bfloat16": {"path": "avx512_bf16"}, "int8": {"path": "widened"}},
        gpu=(True, "no GPU backend asked", ""),
        shared_memory=(True, "64 MiB free", ""), kernel_cache=(True, "in /c", ""),
    )  # fmt: skip
    each = {name: value if isinstance(value, list) else [value] * n for name, value in changes.items()}
    return [plain | {"rank": r} | {name: values[r] for name, values in each.items()} for r in range(n)]


def links(n, bps=1e9):
    rate, trip = np.full((n, n), bps), np.full((n, n), 1e-3)
    np.fill_diagonal(rate, np.nan)
    np.fill_diagonal(trip, np.nan)
    return rate, trip


def found(facts, rate=None):
    own_rate, trip = links(len(facts))
    return {f.check: f for f in findings(facts, own_rate if rate is None else rate, trip)}


def test_nothing_wrong():
    answers = found(facts(4))
    assert all(f.fine and not f.cure for f in answers.values())
    assert answers["gpu"].found == "no GPU backend asked"


@pytest.mark.parametrize(
    "changes, check, cure",
    [
        (dict(threads=3), "cores of node1", "at most 1 ranks on this host, or --threads 1"),
        (dict(cores=[[0], [0]]), "cores of node1", "--bind-to core"),
        (dict(versions=[VERSIONS, VERSIONS | {"mpi": "Open MPI 5"}]), "mpi", "same environment"),
        (dict(tasks={"SLURM_NTASKS": 4}), "ranks", "srun --mpi=pmi2"),
        (dict(speeds=[{"gemm": 50e9}, {"gemm": 25e9}]), "speed", "--weights 1.00,0.50"),
        (dict(files=[{"m.h5": "1 bytes, sha256 a"}, {"m.h5": "1 bytes, sha256 b"}]), "file m.h5", "file system"),
        (dict(files={"m.h5": "cannot be read (gone)"}), "file m.h5", "file system"),
        (dict(shared_memory=[(True, "", ""), (False, "1 MiB free", "enlarge")]), "shared memory of node1", "enlarge"),
        (dict(kernel_cache=(False, "not kept", "NUMBA_CACHE_DIR")), "compiled kernels of node1", "NUMBA_CACHE_DIR"),
        (dict(gpu=[(True, "", ""), (False, "cupy is not installed", "pip install")]), "gpu", "pip install"),
    ],
)
def test_what_is_wrong_comes_with_its_cure(changes, check, cure):
    answers = found(facts(2, **changes))
    assert not answers[check].fine and cure in answers[check].cure
    assert [f.check for f in answers.values() if not f.fine] == [check]


def test_half_cores_by_quota_are_no_oversubscription():
    """Four nodes of half a core each on a host of two."""
    assert found(facts(4, cpus=2, cores=[[0, 1]] * 4, quota=0.5))["cores of node1"].fine
    assert not found(facts(4, cpus=2, cores=[[0, 1]] * 4))["cores of node1"].fine


def test_ranks_on_two_hosts_do_not_share_cores():
    answers = found(facts(2, host=["a", "b"], cpus=1, cores=[[0], [0]]))
    assert answers["cores of a"].fine and answers["cores of b"].fine


def test_what_products_run_on():
    answer = found(facts(2))["products"]
    assert answer.fine and answer.found.startswith("AVX512-BF16: bfloat16 by avx512_bf16, int8 by widened, the same")
    refused = [{"has": ["AMX int8"], "refused": "the system refuses tiles (Operation not permitted)"}]
    answer = found(facts(1, cpu=refused))["products"]
    assert not answer.fine and "rank 0: the system refuses tiles" in answer.found and "seccomp" in answer.cure
    other = {"bfloat16": {"path": "widened"}, "int8": {"path": "widened"}}
    answer = found(facts(2, compute=[facts(1)[0]["compute"], other]))["products"]
    assert not answer.fine and "bfloat16 by widened, int8 by widened on rank 1" in answer.found


def test_slow_link_is_named():
    rate, _ = links(3)
    rate[1, 2] = 1e7
    answer = found(facts(3), rate)["links"]
    assert not answer.fine and "10 Mbps (rank 1 to 2)" in answer.found


def test_launcher_of_a_step_counts_its_nodes_not_its_ranks():
    """mpirun inside a SLURM job starts one proxy per node as a job step."""
    tasks = {"PMI_SIZE": 2, "SLURM_STEP_NUM_TASKS": 1, "SLURM_NTASKS": 2}
    assert found(facts(2, tasks=tasks))["ranks"].fine


@pytest.mark.parametrize(
    "groups, files, cores",
    [
        ("0::/a\n", {"a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("4:cpu,cpuacct:/a\n", {"cpu/a/cpu.cfs_quota_us": "25000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.25),
        ("4:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None),
        ("0::/elsewhere\n", {}, None),
    ],
)
def test_cpu_quota(tmp_path, groups, files, cores):
    (tmp_path / "cgroup").write_text(groups)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path / "cgroup", tmp_path) == cores


def test_a_crash_in_the_trial_is_an_answer():
    assert try_alone("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)") == "ended by signal 11"
    assert try_alone("raise SystemExit('MPI delivered something else')") == "MPI delivered something else"
    assert try_alone("import time\ntime.sleep(60)", limit_s=0.2) == "no answer within 0.2 s"
    assert try_alone("import os\nassert 'PMI_RANK' not in os.environ") == ""


def test_gpu_is_not_asked_for_by_default():
    assert gpu_answer(False) == (True, "no GPU backend asked", "")


def test_speeds_are_positive():
    speeds = kernel_speeds(reference, repeats=1)
    assert all(0 < value < float("inf") for value in dataclasses.astuple(speeds) if value is not None)


@pytest.mark.mpi
def test_links_of_these_ranks(comm):
    rtt_s, bandwidth_bps = measure_links(comm, 0.5)
    off = ~np.eye(comm.size, dtype=bool)
    for values in (rtt_s, bandwidth_bps):
        assert (values[off] > 0).all() and np.isfinite(values[off]).all() and np.isnan(np.diag(values)).all()


@pytest.mark.mpi
def test_facts_of_all_ranks_meet_on_rank_0(comm):
    every = gather_json(comm, {"rank": comm.rank, "text": "é" * comm.rank})
    assert (every is None) == (comm.rank > 0)
    if every is not None:
        assert every == [{"rank": r, "text": "é" * r} for r in range(comm.size)]


@pytest.mark.mpi
def test_examine(comm):
    own = "/proc/self/status"  # every process reads another one
    report = examine(comm, [__file__, own], gpu=False, links_s=0.5)
    assert (report is None) == (comm.rank > 0)
    if report is not None:
        assert [rank["rank"] for rank in report["ranks"]] == list(range(comm.size))
        states = {finding["check"]: finding["state"] for finding in report["findings"]}
        assert states["ranks"] == states[f"file {__file__}"] == "ok"
        assert comm.size == 1 or states[f"file {own}"] == "warn"
        assert Speeds(**report["ranks"][0]["speeds"]).gemm > 0
        for compute, told in report["ranks"][0]["compute"].items():
            assert told["gflops"] > 0 and told["path"] == path(compute).name
            assert Speeds(**told["speeds"]).gemm > 0
        assert len(report["links"]["rtt_s"]) == comm.size
        assert json.loads(json.dumps(report)) == report


def test_command(tmp_path):
    command = [str(MPIRUN), "-n", "2", sys.executable, "-m", "astra_mpi", "doctor", "--links-s"]
    done = subprocess.run([*command, "0.5", "--json", tmp_path / "d.json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "d.json").read_text())["format"] == "astra-mpi-doctor"
    assert "ok   ranks: MPI sees 2" in done.stdout and "bandwidth in Mbps" in done.stdout
    assert "products by type" in done.stdout
    done = subprocess.run([*command, "0"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("astra-mpi: error: --links-s 0 is not above zero") == 1
