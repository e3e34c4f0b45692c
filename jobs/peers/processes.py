"""The processes of contestants: started on nodes of the emulated cluster or on this machine, asked, and ended.

They load outside the quota of their nodes, so that this takes no longer than it must, and then move in.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from contestants import DLLAMA, LLAMA, OURS, Contestant
from worker import peak_bytes

from astra_mpi.errors import AstraError
from astra_mpi.files import whole

HERE = Path(__file__).parent
CLUSTER = HERE.parent / "cluster" / "cluster.sh"
CGROUPS = Path("/sys/fs/cgroup/cpu") if Path("/sys/fs/cgroup/cpu").is_dir() else Path("/sys/fs/cgroup")
SERVER_PORTS, GLOO_PORT = {LLAMA: 50052, DLLAMA: 9998}, 29500
LOADING_S = 600.0


def cluster(*words: Any) -> str:
    done = subprocess.run([CLUSTER, *map(str, words)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise AstraError(done.stderr.strip() or f"cluster.sh {words[0]} failed")
    return done.stdout


def sent_bytes() -> int:
    """By all nodes since the cluster is up."""
    return sum(node["sent_bytes"] for node in json.loads(cluster("bytes", "--json")))


def on_node(node: int) -> list[str]:
    return ["ip", "netns", "exec", f"astra-{node}"]


class Process:
    """A contestant's processes: made, then `ready`; `ask` is one turn."""

    def __init__(self, work: Path, contestant: Contestant, place: str) -> None:
        """place: "core", or a node or link of the cluster that is up."""
        self.contestant, self.place, self.turn = contestant, place, 0
        self.folder = work / "turns" / contestant.process.replace(" ", "_").replace(":", "_")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.log = self.folder / "log"
        self.servers: list[subprocess.Popen[bytes]] = []
        self.pids: list[int] = []
        self.pipes: list[TextIO] = []
        load = dict(contestant.load)
        if load.get("servers"):
            load["servers"] = self._servers(work, contestant.nodes - 1)
        told = {"peer": contestant.peer, "files": str(work / "files"), "load": load}
        whole.write_text(self.folder / "load.json", json.dumps(told))
        self.ranks = 1 if contestant.peer in (LLAMA, DLLAMA) else contestant.nodes
        for rank in range(self.ranks):
            os.mkfifo(self.folder / f"requests-{rank}")
        self.workers = self._workers(place)

    def ready(self) -> None:
        """Waits until all have loaded, and moves them to their nodes."""
        ready = [json.loads(self._await(f"ready-{rank}.json", LOADING_S)) for rank in range(self.ranks)]
        self.load_s = max(each["load_s"] for each in ready)
        self.pids = [each["pid"] for each in ready] + [server.pid for server in self.servers]
        if self.place != "core":
            for node, pid in enumerate(self.pids):
                (CGROUPS / f"astra-{node}" / "cgroup.procs").write_text(str(pid))
        self.pipes = [(self.folder / f"requests-{rank}").open("w") for rank in range(self.ranks)]

    def _servers(self, work: Path, n: int) -> list[str]:
        """On the nodes from the second on -> their addresses."""
        peer = self.contestant.peer
        words = {
            LLAMA: [str(work / "llama" / "bin" / "ggml-rpc-server"), "--threads", "1"],
            DLLAMA: [str(work / "dllama" / "dllama"), "worker", "--nthreads", "1", "--net-turbo", "0"],
        }[peer]
        for node in range(1, n + 1):
            address = ["--host", f"10.77.0.{node + 1}", "--port", str(SERVER_PORTS[peer])]
            self._start([*on_node(node), *words, *address], self.servers)
        time.sleep(2)  # they listen
        return [f"10.77.0.{node + 1}:{SERVER_PORTS[peer]}" for node in range(1, n + 1)]

    def _workers(self, place: str) -> list[subprocess.Popen[bytes]]:
        worker = [sys.executable, str(HERE / "worker.py"), str(self.folder)]
        started: list[subprocess.Popen[bytes]] = []
        if place == "core":
            self._start(worker, started)
        elif self.ranks == 1:
            self._start([*on_node(0), *worker], started)
        elif self.contestant.peer == OURS:
            enter = ["sh", "-c", 'exec ip netns exec "astra-$PMI_RANK" "$@"', "sh"]
            wires = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "eth0"}
            self._start(["mpirun", "-n", str(self.ranks), *enter, *worker], started, **wires)
        else:
            meeting = {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": str(GLOO_PORT), "GLOO_SOCKET_IFNAME": "eth0"}
            for rank in range(self.ranks):
                place_of = {"PMI_RANK": str(rank), "PMI_SIZE": str(self.ranks)}
                self._start([*on_node(rank), *worker], started, **meeting, **place_of)
        return started

    def _start(self, command: list[str], among: list[subprocess.Popen[bytes]], **variables: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **variables}
        with self.log.open("a") as log:
            streams: Any = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL}
            among.append(subprocess.Popen(command, env=environment, start_new_session=True, **streams))

    def _await(self, name: str, limit_s: float) -> str:
        path, end_s = self.folder / name, time.perf_counter() + limit_s
        while not path.exists():
            if any(worker.poll() is not None for worker in [*self.workers, *self.servers]):
                raise AstraError(f"{self.contestant.name} has ended; {self.log} says why")
            if time.perf_counter() > end_s:
                raise TimeoutError(f"{self.contestant.name} took more than {limit_s:.0f} s")
            time.sleep(0.02)
        return path.read_text()

    def ask(self, n_tokens: int, n_new: int, call: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """A turn: rank 0's answer, with the peak memory of every node. TimeoutError after limit_s."""
        for pipe in self.pipes:
            pipe.write(json.dumps({"tokens": n_tokens, "new": n_new, "call": call}) + "\n")
            pipe.flush()
        every = [json.loads(self._await(f"answer-{self.turn}-{rank}.json", limit_s)) for rank in range(self.ranks)]
        self.turn += 1
        servers = [peak_bytes(str(server.pid)) for server in self.servers]
        return every[0] | {"peak_bytes": [each["peak_bytes"] for each in every] + servers}

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for worker in self.workers:
            try:
                worker.wait(20)
            except subprocess.TimeoutExpired:
                break
        self.kill()

    def kill(self) -> None:
        for process in [*self.workers, *self.servers]:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in self.pids:  # mpirun may have left some
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.pids = []
