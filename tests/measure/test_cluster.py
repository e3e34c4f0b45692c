"""jobs/cluster/cluster.sh: what it refuses, what it makes, and that nothing of it stays behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "jobs" / "cluster" / "cluster.sh"
SENDER = [sys.executable, ROOT / "jobs" / "cluster" / "cluster_check.py", "--rounds", "3", "--spin", "0.3"]
CORES = len(os.sched_getaffinity(0))

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def cluster(*arguments, **kwargs):
    command = [SCRIPT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, **kwargs)


def missing():
    """Why no cluster can be made here, or None."""
    if os.geteuid() != 0:
        return "needs root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "needs iproute2"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode:
        return "needs the right to make network namespaces"
    if not subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout.startswith("HYDRA"):
        return "needs MPICH's mpirun"
    status = cluster("status")
    return status.stderr.strip() or (None if status.returncode else "a cluster is in use on this machine")


@pytest.fixture
def clean():
    reason = missing()
    if reason:
        pytest.skip(reason)
    yield
    assert cluster("down").returncode == 0
    assert not names()


@pytest.fixture
def nodes(clean):
    made = cluster("up", 3, "20,20,5", "0.4,0.2,0.2")
    assert made.returncode == 0, made.stderr


def names():
    """Namespaces and control groups of the cluster."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [s for s in spaces if s.startswith("astra-")] + list(Path("/sys/fs/cgroup").glob("**/astra-[0-9]*"))


def says(result, words):
    """One sentence, exit code 2."""
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 10, 0.5), "NODES must be a whole number of at least 1"),
        ((-1, 10, 0.5), "NODES must be"),
        (("1.5", 10, 0.5), "NODES must be"),
        ((255, 10, 0.5), "254 addresses"),
        ((2, 0, 0.5), "MBPS must be positive numbers, not '0'"),
        ((2, "0.00", 0.5), "MBPS must be"),
        ((2, -10, 0.5), "MBPS must be"),
        ((2, "fast", 0.5), "MBPS must be"),
        ((2, "", 0.5), "MBPS must be"),
        ((2, "10,,10", 0.5), "MBPS lists 3 values for 2 nodes"),
        ((2, "10,", 0.5), "MBPS must be"),
        ((3, "10,10", 0.5), "MBPS lists 2 values for 3 nodes"),
        ((2, 10, "0.1,0.1,0.1"), "CPU lists 3 values for 2 nodes"),
        ((2, 10, 0), "CPU must be"),
        ((2, 10, "0.5,-1"), "CPU must be"),
        ((2, 10, "0.5,half"), "CPU must be"),
        ((1, 10, CORES + 0.5), f"this machine has {CORES}"),
        ((4, 10, CORES / 4 + 0.01), f"this machine has {CORES}"),
        ((1, 10, 0.0001), "least is 0.001"),
    ],
)
def test_up_refuses(arguments, words):
    says(cluster("up", *arguments), words)


@pytest.mark.parametrize("arguments", [(), ("start",), ("up", 2), ("run", 2), ("awake",)])
def test_usage(arguments):
    result = cluster(*arguments)
    assert result.returncode == 2
    assert "up NODES MBPS CPU" in result.stderr


def test_refuses_without_root(tmp_path):
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for arguments in (("up", 1, 10, 0.1), ("run", 1, "true"), ("bytes",), ("status",), ("down",)):
        says(cluster(*arguments, env=environment), "need root")


def test_refuses_without_iproute2(tmp_path):
    for tool in ("bash", "env", "nproc", "awk", "sort", "head"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    (tmp_path / "id").write_text("#!/bin/bash\necho 0\n")
    (tmp_path / "id").chmod(0o755)
    says(cluster("up", 1, 10, 0.1, env={"PATH": str(tmp_path)}), "iproute2")


def test_nothing_to_use_when_down(clean):
    says(cluster("run", 1, "true"), "no cluster is up")
    says(cluster("bytes"), "no cluster is up")
    assert cluster("status").returncode == 1
    for _ in range(2):
        assert cluster("down").returncode == 0


def burners(pid):
    """What keeps cores awake for a process."""
    found = subprocess.run(["pgrep", "-f", f"awake {pid}$"], capture_output=True, text=True).stdout.split()
    return [os.sched_getscheduler(int(one)) for one in found]


def test_cores_stay_awake_while_a_process_runs(clean):
    process = subprocess.Popen(["sleep", "60"])
    assert cluster("awake", process.pid).returncode == 0
    assert burners(process.pid) == [os.SCHED_IDLE] * CORES
    process.kill()
    end_s = time.perf_counter() + 10
    while burners(process.pid) and time.perf_counter() < end_s:  # before it is waited for, too
        time.sleep(0.1)
    assert not burners(process.pid)
    process.wait()
    says(cluster("awake", process.pid), f"no process {process.pid} runs")


def test_links_and_quotas_are_as_asked(nodes):
    rows = [line.split() for line in cluster("status").stdout.splitlines()[1:]]
    assert [row[1] for row in rows] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert [row[2] for row in rows] == ["20Mbit", "20Mbit", "5Mbit"]
    assert [row[3] for row in rows] == ["0.4", "0.2", "0.2"]


def test_run_puts_one_rank_on_each_node(nodes, tmp_path):
    result = cluster("run", 3, "ip", "-4", "-br", "addr", "show", "eth0", cwd=tmp_path)
    assert sorted(re.findall(r"[0-9.]+/24", result.stdout)) == [f"10.77.0.{i}/24" for i in (1, 2, 3)]
    assert result.returncode == 0
    assert cluster("run", 1, "sh", "-c", "exit 7").returncode == 7
    says(cluster("run", 4, "true"), "the cluster has 3")
    says(cluster("run", 0, "true"), "RANKS must be")


def test_what_is_sent_is_shaped_and_counted(nodes):
    result = cluster("run", 3, *SENDER, "--bytes", "65536")
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout.splitlines()[-1])
    (row,) = figures["allgather"]
    assert 1.0 < row["counted_over_asked"] < 1.2  # headers, acknowledgements, barriers
    assert row["mbps"] < 5.0  # the slowest link, whose headers count too
    assert max(figures["cores"][1:]) < 0.3
    counted = json.loads(cluster("bytes", "--json").stdout)
    assert [c["node"] for c in counted] == [0, 1, 2]
    sent, received = (sum(c[key] for c in counted) for key in ("sent_bytes", "received_bytes"))
    assert sent >= row["counted"]
    assert abs(sent - received) < 0.05 * sent
    assert len(cluster("bytes").stdout.splitlines()) == 4


def test_a_second_up_leaves_the_first_alone(nodes):
    says(cluster("up", 1, 10, 0.1), "a cluster of 3 nodes is up")
    assert len(cluster("status").stdout.splitlines()) == 4


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def processes():
    return [int(line.split()[4]) for line in cluster("status").stdout.splitlines()[1:]]


def test_after_a_killed_run_the_next_one_works(nodes):
    job = subprocess.Popen([SCRIPT, "run", "2", "sleep", "300"], stderr=subprocess.DEVNULL)
    wait_for(lambda: processes() == [1, 1, 0])
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert cluster("run", 2, "true").returncode == 0
    assert processes() == [0, 0, 0]


def test_down_ends_a_run(nodes):
    with subprocess.Popen(
        [SCRIPT, "run", "2", "sleep", "300"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        wait_for(lambda: processes() == [1, 1, 0])
        assert cluster("down").returncode == 0
        assert job.wait(20) != 0


def test_after_a_killed_up_the_next_one_works(clean):
    job = subprocess.Popen([SCRIPT, "up", "20", "10", "0.05"])
    wait_for(lambda: len(names()) > 8)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert cluster("status").returncode == 1
    made = cluster("up", 2, 10, 0.1)
    assert made.returncode == 0, made.stderr
    assert len(cluster("status").stdout.splitlines()) == 3
