"""Where compiled kernels are kept, and that nothing about that place ends a run."""

import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
from numba import config
from numba.core.caching import Cache, InTreeCacheLocator, UserWideCacheLocator
from numba.core.codegen import CPUCodegen

from astra_mpi.cli import main
from astra_mpi.device import ahead
from astra_mpi.device.backend import COMPUTES, get_backend
from astra_mpi.doctor.placement import kernel_cache
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import write_model
from astra_mpi.kernels import _compile, cpu
from astra_mpi.kernels.cpu.ahead import PARTS, parts
from helpers.fakes import bert_config, llama_config, model_file

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
    shutil.rmtree(beside)
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "mine"))
    n_compiled, folder, trouble = load()
    assert (n_compiled, trouble) == (2, "") and folder.startswith(str(tmp_path / "mine" / "package_"))


def test_what_was_compiled_ahead_is_found_where_nothing_can_be_written(load, module, tmp_path, monkeypatch):
    """Read from the folder beside the source, or from the one that is given, whatever else can be written."""
    mine, home = tmp_path / "mine", tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.setattr(config, "CACHE_DIR", "")
    assert load()[0] == 2
    monkeypatch.setattr(config, "CACHE_DIR", str(mine))
    assert load()[::2] == (0, ""), "found beside the source"
    monkeypatch.setattr(_compile, "FILLS", True)
    assert load()[::2] == (2, ""), "the given folder is filled all the same"
    monkeypatch.setattr(_compile, "FILLS", False)
    shutil.rmtree(module.parent / "__pycache__")
    for writable in (True, False):
        with monkeypatch.context() as read_only:
            for place in (_compile._Given, InTreeCacheLocator, *([] if writable else [UserWideCacheLocator])):
                read_only.setattr(place, "from_function", lambda function, file: None)
            n_compiled, folder, trouble = load()
            assert n_compiled == 0 and folder.startswith(str(home)) == writable
            assert trouble.startswith("none of NUMBA_CACHE_DIR") != writable
            assert kernel_cache() == (True, f"all found in {_compile.STATE.found_in}", "")
            assert _compile.STATE.found_in.startswith(str(mine))


def test_a_given_folder_serves_installations_at_other_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))
    kernel = cpu.layer_norm.__globals__["_layer_norm"].py_func
    place = _compile._Given(kernel, kernel.__code__.co_filename).get_cache_path()
    assert place == str(tmp_path / f"astra-mpi-{_compile._sources_stamp()[:16]}" / "cpu")


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


def test_the_command_that_compiles_ahead(tmp_path):
    """One part, into a folder: another process, which may not write there, then compiles nothing."""
    part = "bfloat16"  # of a few kernels

    def fill():
        return ahead.fill([part], str(tmp_path), 2)

    first, again = fill(), fill()
    assert again.n_compiled == {part: 0} and first.took_s[part] > 0
    assert again.n_bytes == first.n_bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.nb[ic]"))
    assert first.folder.startswith(str(tmp_path)) or first.n_compiled == {part: 0}, "a CPU without such products"
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: no folder can be made there"):
        ahead.fill([part], str(tmp_path / "file"), 1)


@pytest.mark.parametrize(
    ("config", "options", "wanted"),
    [
        (None, [], ["token", "narrow", "float32", "int8", "bfloat16", "blocks"]),
        (bert_config(), ["--compute", "int8"], ["narrow", "float32", "int8"]),
        (llama_config(), ["--compute", "float32", "--processes", "3"], ["token", "float32"]),
    ],
)
def test_the_command_compiles_what_models_need(tmp_path, monkeypatch, capsys, config, options, wanted):
    asked = []

    def fill(parts, folder, n_processes):
        asked.append((parts, folder, n_processes))
        one = dict.fromkeys(parts, 1)
        return ahead.Filled(str(tmp_path), "a processor", one, one, 1.0, 3_000_000)

    monkeypatch.setattr(ahead, "fill", fill)
    models = [] if config is None else [str(tmp_path / "m.h5")]
    for model in models:
        write_model(model, model_file(config))
    words = ["compile", *models, "--folder", str(tmp_path), "--json", str(tmp_path / "out.json"), *options]
    assert main(words) == 0
    ((parts, folder, n_processes),) = asked
    assert parts == wanted and folder == str(tmp_path)
    assert n_processes == (3 if "--processes" in options else len(os.sched_getaffinity(0)))
    said = capsys.readouterr().out
    assert f"kernels for a processor, 3.0 MB in {tmp_path}" in said and f"NUMBA_CACHE_DIR={tmp_path}" in said
    assert json.loads((tmp_path / "out.json").read_text())["n_compiled"] == dict.fromkeys(wanted, 1)


@pytest.mark.parametrize("wrong", [["--processes", "0"], ["--processes", "-1"], ["--compute", "float64"], ["no.h5"]])
def test_the_command_refuses(wrong, capsys):
    assert main(["compile", *wrong]) == 2
    assert wrong[-1] in capsys.readouterr().err


def test_parts_of_kernels():
    assert parts(("float32",), False, False) == ["float32"]
    assert parts(("float32", "int8"), True, True) == ["token", "narrow", "float32", "int8", "blocks"]
    assert set(parts(COMPUTES, True, True)) == set(PARTS)


def test_without_compilation(monkeypatch):
    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    assert _compile.compiled()(os.path.join) is os.path.join


def test_the_kernels_are_kept_here():
    cpu.warm_up()
    state = cpu.cache_state()
    assert state.folder.endswith("__pycache__") or config.CACHE_DIR
    assert state.trouble == ""
