"""The job scripts of jobs/slurm on a real SLURM, which this file starts for itself: four nodes, all on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from astra_mpi.files.modelfile import ModelFile, write_model
from helpers.fakes import bert_config, model_file
from helpers.job import write_texts
from helpers.processes import MPIRUN, outside
from helpers.tokenizers import byte_tokenizer

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "jobs" / "slurm"
SYSTEM = f"{os.environ['PATH']}:/usr/sbin:/sbin"
PMI = "pmix" if MPI.get_vendor()[0] == "Open MPI" else "pmi2"
BATCH, N_ITEMS = 2, 24
LIMIT_S = 110
#: a fifth of a second and more per exchange, so that a job can be caught at work
SLOW = "parallel.network=100Mbps,rtt=200ms"


class Cluster:
    """A SLURM of this test's own."""

    def __init__(self, base):
        self.base = base
        self.env = outside(PATH=SYSTEM, SLURM_CONF=str(base / "slurm.conf"), VENV=sys.prefix, MPI=PMI)
        self.gpus = 2 if os.geteuid() == 0 else 0
        self.env |= {"NUMBA_CACHE_DIR": "", "GPUS": str(self.gpus), "OWNER": str(os.getpid())}
        self.env.pop("SITE", None)
        self.end_s = 0.0

    def call(self, *command, check=True, **more):
        env = self.env | more
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        assert not check or done.returncode == 0, f"{command}: {done.stdout} {done.stderr}"
        return done.stdout.strip()

    def submit(self, log, script, *arguments, options=(), **env):
        """-> job number; the job's output goes to `log`."""
        self.end_s = time.monotonic() + LIMIT_S
        return self.call("sbatch", "--parsable", f"--output={log}", *options, SCRIPTS / script, *arguments, **env)

    def jobs(self, number):
        """What SLURM knows of a job, or of every task of an array."""
        lines = self.call("scontrol", "show", "job", "-o", number).splitlines()
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in lines]

    def until(self, what, log):
        """Wait for what() to give something; fail with the job's log."""
        while not (found := what()):
            assert time.monotonic() < self.end_s, f"not within {LIMIT_S} s: {read(log)}"
            time.sleep(0.1)
        return found

    def restarted(self, number, log):
        """Wait until a job has gone back into the queue."""

        def look():
            (job,) = self.jobs(number)
            assert job["JobState"] not in ("COMPLETED", "FAILED", "NODE_FAIL", "CANCELLED"), f"{job} {read(log)}"
            return job.get("Restarts") == "1"

        return self.until(look, log)

    def finished(self, number, log):
        """Wait until a job, or every task of an array, has ended for good -> what SLURM knows of them."""

        def look():
            jobs = self.jobs(number)
            open_states = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING")
            return jobs if not any(job["JobState"] in open_states for job in jobs) else None

        return self.until(look, log)


def read(log):
    return log.read_text() if log.exists() else ""


@pytest.fixture(scope="module")
def cluster():
    missing = subprocess.run(
        ["bash", SCRIPTS / "local_cluster.sh", "missing"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    if missing:
        reason = f"no {missing} here; `bash jobs/slurm/local_cluster.sh install` as root installs SLURM"
        pytest.fail(reason) if os.environ.get("NEED_SLURM") else pytest.skip(reason)
    if not (Path(sys.prefix) / "bin" / "astra-mpi").exists():
        pytest.skip(f"no astra-mpi in {sys.prefix}/bin; install the package into a virtual environment")
    base = Path(tempfile.mkdtemp(prefix="slurm-")) / "c"  # a short path, for munge's socket
    own = Cluster(base)
    try:
        own.call("bash", SCRIPTS / "local_cluster.sh", "up", base)
        yield own
    finally:
        own.call("bash", SCRIPTS / "local_cluster.sh", "down", base)
        shutil.rmtree(base.parent, ignore_errors=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A small model, texts, a deck, and what two ranks under mpirun make of them."""
    if MPIRUN is None:
        pytest.skip("no mpirun")
    folder = tmp_path_factory.mktemp("job")
    config = bert_config()
    file = model_file(config)
    limits = {"max_tokens": 12}
    write_model(folder / "model.h5", ModelFile(config, file.weights, file.codec, byte_tokenizer(), limits))
    write_texts(folder, N_ITEMS)
    (folder / "deck.toml").write_text(
        '[model]\npath = "model.h5"\n[input]\npath = "in.txt"\nkind = "text"\n[task]\nname = "embed"\n'
        f'[parallel]\nremote = "table"\n[run]\nbatch = {BATCH}\n[output]\npath = "alone.h5"\n'
    )
    command = [MPIRUN, "-n", "2", sys.executable, "-m", "astra_mpi", "run", folder / "deck.toml"]
    subprocess.run(command, env=outside(), capture_output=True, check=True, timeout=120)
    return folder


def embeddings(path):
    with h5py.File(path, locking=False) as file:
        return file["outputs/embedding"][()]


def assert_same_bits(job, name):
    np.testing.assert_array_equal(embeddings(job / name), embeddings(job / "alone.h5"))


def parts(job, name):
    return len(list((job / f"{name}.parts").glob("part-*.h5")))


def test_one_node_by_srun_many_nodes_by_mpirun(cluster, job):
    """Side by side; the first gives the bits of mpirun outside, the second has two threads per rank."""
    one, many = job / "one.log", job / "many.log"
    deck = job / "deck.toml"
    first = cluster.submit(one, "one-node.sbatch", deck, f"output.path={job}/one.h5", options=["--ntasks=2"])
    options = {"options": ["--nodes=2", "--cpus-per-task=2"], "LAUNCHER": "mpirun"}
    second = cluster.submit(many, "many-nodes.sbatch", deck, f"output.path={job}/many.h5", **options)
    for number, log, nodes, threads in ((first, one, "1", 1), (second, many, "2", 2)):
        (ended,) = cluster.finished(number, log)
        assert ended["JobState"] == "COMPLETED" and ended["NumNodes"] == nodes, read(log)
        assert f"job {number}: 2 ranks of {threads} threads on n" in read(log)
    assert_same_bits(job, "one.h5")
    np.testing.assert_allclose(embeddings(job / "many.h5"), embeddings(job / "alone.h5"), rtol=0, atol=1e-4)
    for name, threads in (("one.h5", 1), ("many.h5", 2)):
        with h5py.File(job / name, locking=False) as file:
            state = json.loads(file.attrs["state"])
            assert state["run.threads"] == threads and state["ranks"] == 2


def run_with(cluster, job, mpi):
    """Submit two ranks under --mpi=`mpi` -> how the job ended, its log."""
    log = job / f"{mpi}.log"
    output = f"output.path={job}/{mpi}.h5"
    number = cluster.submit(log, "one-node.sbatch", job / "deck.toml", output, options=["--ntasks=2"], MPI=mpi)
    (ended,) = cluster.finished(number, log)
    assert not (job / f"{mpi}.h5").exists()
    return ended, read(log)


def test_tasks_that_mpi_does_not_join_are_refused_once_with_the_cure(cluster, job):
    ended, log = run_with(cluster, job, "none")
    # 2, or 143 of a task that SLURM ended because the other one had refused: it tells the highest
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] in ("2:0", "143:0"), log
    assert log.count("astra-mpi: error: 2 processes were asked for, but MPI sees one") == 1, log
    assert "srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI)" in log


def test_mpi_of_the_other_library_fails(cluster, job):
    """MPICH itself refuses PMIx; Open MPI under PMI-2 sees singletons."""
    other = {"pmi2": "pmix", "pmix": "pmi2"}[PMI]
    if other not in cluster.call("srun", "--mpi=list").split():
        pytest.skip(f"this SLURM has no --mpi={other}")
    ended, log = run_with(cluster, job, other)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] != "0:0", log


def test_job_array_over_shards(cluster, job):
    log = job / "array.log"
    arguments = [job / "deck.toml", f"output.path={job}/array.h5"]
    options = {"options": ["--array=0-2", "--ntasks=2"], "SHARDS": "3"}
    number = cluster.submit(log, "array.sbatch", *arguments, **options)
    tasks = cluster.finished(number, log)
    assert [task["JobState"] for task in tasks] == ["COMPLETED"] * 3, read(log)
    shards = sorted(job.glob("array.*-of-3.h5"))
    assert len(shards) == 3
    # the last one again, alone: it takes itself for what it is, and finds its work done
    before = shards[2].stat().st_mtime_ns
    options["options"] = ["--array=2", "--ntasks=2"]
    number = cluster.submit(log, "array.sbatch", *arguments, **options)
    assert [task["JobState"] for task in cluster.finished(number, log)] == ["COMPLETED"], read(log)
    assert shards[2].stat().st_mtime_ns == before
    merged = f"{sys.prefix}/bin/astra-mpi merge {job}/array.h5 {job}/array.*-of-3.h5"
    number = cluster.call("sbatch", "--parsable", f"--output={log}", f"--dependency=afterok:{number}", "--wrap", merged)
    assert cluster.finished(number, log)[0]["JobState"] == "COMPLETED", read(log)
    assert_same_bits(job, "array.h5")


@pytest.mark.parametrize("launcher", ["srun", "mpirun"])
def test_preempted_job_stops_after_a_batch_and_goes_on(cluster, job, launcher):
    name = f"preempted-{launcher}.h5"
    log = job / f"preempted-{launcher}.log"
    arguments = [job / "deck.toml", SLOW, f"output.path={job}/{name}"]
    options = {"options": ["--ntasks=2"], "LAUNCHER": launcher}
    number = cluster.submit(log, "preemptible.sbatch", *arguments, **options)
    cluster.until(lambda: parts(job, name) >= 2, log)
    cluster.call("scancel", "--signal=USR1", "--batch", number)  # as SLURM does before the limit
    cluster.restarted(number, log)
    (ended,) = cluster.finished(number, log)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", read(log)
    assert read(log).count("stopped by SIGUSR1 after batch") == 1, read(log)
    assert "back into the queue" in read(log) and f"job {number}, restart 1: 2 ranks" in read(log)
    # no batch was done twice: the second start counts from where the first stopped
    stopped_after = int(read(log).split("stopped by SIGUSR1 after batch ")[1].split(";")[0])
    assert 2 <= stopped_after < N_ITEMS / BATCH
    assert_same_bits(job, name)


@pytest.mark.skipif(not os.environ.get("SLURM_REAL_LIMIT"), reason="takes 80 s; SLURM_REAL_LIMIT=1 runs it")
def test_job_that_meets_its_time_limit_again_and_again(cluster, job):
    log = job / "limit.log"
    arguments = [job / "deck.toml", "parallel.network=100Mbps,rtt=1500ms", f"output.path={job}/limit.h5"]
    options = ["--ntasks=2", "--time=00:01:00", "--signal=B:USR1@50"]
    number = cluster.submit(log, "preemptible.sbatch", *arguments, options=options)
    cluster.end_s += 2 * LIMIT_S
    (ended,) = cluster.finished(number, log)
    assert ended["JobState"] == "COMPLETED" and int(ended["Restarts"]) >= 1, read(log)
    assert_same_bits(job, "limit.h5")


def kill_node(cluster, node):
    """End the daemon of a node and all it runs, without any warning, and let SLURM know."""
    tasks = [pid for pid in processes() if runs_on(cluster, node, pid)]
    # first those that could still tell SLURM how the tasks ended
    told_by = {parent for parent in map(parent_of, tasks) if name_of(parent).startswith("slurmstepd")}
    daemon = int((cluster.base / f"slurmd.{node}.pid").read_text())
    for pid in [daemon, *told_by, *tasks]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")


def processes():
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def runs_on(cluster, node, pid):
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return {f"SLURM_CONF={cluster.base}/slurm.conf".encode(), f"SLURMD_NODENAME={node}".encode()} <= set(environ)


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def test_job_of_a_lost_node_goes_on_elsewhere(cluster, job):
    log = job / "lost.log"
    arguments = [job / "deck.toml", SLOW, f"output.path={job}/lost.h5"]
    number = cluster.submit(log, "one-node.sbatch", *arguments, options=["--ntasks=2"])
    cluster.until(lambda: parts(job, "lost.h5") >= 2, log)
    node = cluster.jobs(number)[0]["NodeList"]
    kill_node(cluster, node)
    cluster.restarted(number, log)
    (ended,) = cluster.finished(number, log)
    assert ended["JobState"] == "COMPLETED" and ended["NodeList"] != node, read(log)
    assert "taking over" in read(log), read(log)
    assert_same_bits(job, "lost.h5")


def test_gpu_job_sees_its_gpus(cluster, job):
    """The GPUs are claimed only, so the backend refuses: what is tested is that SLURM gave them to every rank."""
    if not cluster.gpus:
        pytest.skip("to claim GPUs takes root, for device files")
    log = job / "gpu.log"
    options = ["--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
    number = cluster.submit(log, "gpu.sbatch", job / "deck.toml", f"output.path={job}/gpu.h5", options=options)
    (ended,) = cluster.finished(number, log)
    assert ended["JobState"] == "FAILED" and ended["ExitCode"] == "2:0", read(log)
    assert "2 on n" in read(log) and "GPUs 0,1" in read(log), read(log)
    assert "cuda" in read(log) and read(log).count("astra-mpi: error:") == 1


def test_scripts_say_what_is_missing(cluster, job, tmp_path):
    for env, words in (
        ({"VENV": str(tmp_path)}, f"error: no astra-mpi in {tmp_path}; run bash jobs/quickstart.sh once, or set VENV"),
        ({"LAUNCHER": "aprun"}, "error: LAUNCHER is 'aprun'; use srun or mpirun"),
    ):
        log = tmp_path / "missing.log"
        number = cluster.submit(log, "one-node.sbatch", job / "deck.toml", options=["--ntasks=2"], **env)
        assert cluster.finished(number, log)[0]["ExitCode"] == "2:0"
        assert words in read(log)
