"""Where compiled kernels are kept, and that nothing about that place ends a run."""

import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
from numba import config
from numba.core.caching import Cache
from numba.core.codegen import CPUCodegen

from astra_mpi.device.backend import get_backend
from astra_mpi.kernels import _compile, cpu

KERNEL = """
from astra_mpi.kernels._compile import compiled

@compiled(fastmath=True)
def total(x):
    s = x[0]
    for i in range(1, x.size):
        s += x[i]
    return s
"""


@pytest.fixture
def module(tmp_path):
    """A file with one kernel, in a folder of its own."""
    (tmp_path / "package").mkdir()
    path = tmp_path / "package" / "one.py"
    path.write_text(KERNEL)
    return path


@pytest.fixture
def load(monkeypatch, module):
    """A function that imports the file anew and calls its kernel with two types -> (compiled, folder, trouble)."""
    import numpy as np

    def call():
        state = _compile.CacheState()
        monkeypatch.setattr(_compile, "STATE", state)
        total = runpy.run_path(str(module))["total"]
        assert total(np.arange(5.0)) == 10 and total(np.arange(6)) == 15
        return state.n_compiled, state.folder, state.trouble

    return call


def test_kept_beside_the_source_or_where_the_variable_says(load, module, tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", "")
    beside = str(module.parent / "__pycache__")
    assert load() == (2, beside, "") and load() == (0, beside, "")
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "mine"))
    n_compiled, folder, trouble = load()
    assert (n_compiled, trouble) == (2, "") and folder.startswith(str(tmp_path / "mine" / "package_"))


def test_compiled_anew_when_another_kernel_changes(load, monkeypatch):
    """It may call what has changed."""
    assert load()[0] == 2 and load()[0] == 0
    monkeypatch.setattr(_compile, "_sources_stamp", lambda: "of other sources")
    assert load()[0] == 2 and load()[0] == 0


def test_no_folder_at_all(load, module, tmp_path, monkeypatch):
    """__pycache__, NUMBA_CACHE_DIR and HOME are files: to root nothing else is a place that cannot be written."""
    for name in ("package/__pycache__", "file"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "file"))
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        n_compiled, folder, trouble = load()
        assert (n_compiled, folder) == (2, "")
        assert f"none of NUMBA_CACHE_DIR={tmp_path / 'file'}, {module.parent / '__pycache__'} and" in trouble


def test_disk_that_is_full_when_a_kernel_is_saved(load):
    """Any write past 100 bytes fails (EFBIG), which index and code are longer than."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for _ in range(2):
            n_compiled, _, trouble = load()
            assert n_compiled == 2 and trouble.endswith("__pycache__ cannot be written (File too large)")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, before)
    assert load()[::2] == (2, "") and load()[::2] == (0, "")


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "flipped", "foreign", "swapped", "unreadable"])
def test_damaged_files_are_made_anew(load, module, ending, damage):
    load()
    files = sorted((module.parent / "__pycache__").glob(f"*{ending}"))
    assert len(files) == (1 if ending == ".nbi" else 2)
    texts = [file.read_bytes() for file in files]
    for file, data, other in zip(files, texts, texts[::-1], strict=True):
        if damage == "unreadable":
            file.unlink()
            file.mkdir()
            continue
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]
        new = {"cut": data[:middle], "emptied": b"", "flipped": flipped, "foreign": b"{}\n" * 100, "swapped": other}
        file.write_bytes(new[damage])
    n_compiled = load()[0]
    assert n_compiled == 2 or (damage, ending) == ("swapped", ".nbi")
    assert load()[::2] == (0, "") or damage == "unreadable"


def test_read_only_root_without_home(module):
    """As in a container image: nothing but a tmpfs can be written."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root and unshare")
    read_only = "mount --bind / / && mount -o remount,ro,bind / || exit 99; mount -t tmpfs none /dev/shm"
    code = f"import runpy, numpy as np\nassert runpy.run_path({str(module)!r})['total'](np.ones(5)) == 5\n"
    code += "from astra_mpi.kernels._compile import STATE\nprint(STATE.trouble)"
    words = ["unshare", "-m", "bash", "-c", f'{read_only}; exec "$@"', "bash", sys.executable, "-c", code]
    plain = {name: value for name, value in os.environ.items() if name not in ("HOME", "NUMBA_CACHE_DIR")}
    done = subprocess.run(words, env=plain, capture_output=True, text=True, timeout=60)
    if done.returncode == 99 or "unshare failed" in done.stderr:
        pytest.skip("no file system may be mounted here")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("and the user's cache folder can be written\n")


@pytest.mark.mpi
def test_one_note_of_rank_0(comm, monkeypatch, capsys):
    """Once, where something had to be compiled; all ranks then compile at once."""
    state = _compile.CacheState(trouble="nowhere")
    monkeypatch.setattr(_compile, "STATE", state)
    todo = [3]

    def warm_up():
        state.n_compiled += todo.pop() if todo else 0

    monkeypatch.setattr(cpu, "warm_up", warm_up)
    for _ in range(2):
        get_backend("numpy", comm)
    said = capsys.readouterr().err
    assert said.count("astra-mpi: note: compiled kernels are not kept (nowhere)") == (comm.rank == 0)
    assert said.count("which took 0 s; set NUMBA_CACHE_DIR to a folder") == (comm.rank == 0)


def test_processes_that_compile_at_once(load, module):
    code = f"import numpy as np, runpy\ntotal = runpy.run_path({str(module)!r})['total']\nassert total(np.ones(5)) == 5"
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    load()
    assert [process.wait(60) for process in both] == [0, 0]
    load()
    assert load()[::2] == (0, "")


def test_code_for_another_processor_is_not_run(load, monkeypatch):
    """As where nodes of two kinds share a folder, and write to it at once."""
    known = CPUCodegen.magic_tuple
    monkeypatch.setattr(Cache, "_index_key", lambda self, sig, codegen: (sig,))
    with monkeypatch.context() as other:
        other.setattr(CPUCodegen, "magic_tuple", lambda self: (*known(self), "other"))
        assert load()[0] == 2 and load()[0] == 0
    assert load()[0] == 2


def test_without_compilation(monkeypatch):
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert _compile.compiled()(os.path.join) is os.path.join


def test_the_kernels_are_kept_here():
    cpu.warm_up()
    state = cpu.cache_state()
    assert state.folder.endswith("__pycache__") or config.CACHE_DIR
    assert state.trouble == ""
