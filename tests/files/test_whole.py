"""Disks that fail: every writer at every size and call, commands as processes; and what a checksum in a file finds."""

import errno
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fault_writers
import fault_writes
import h5py
import numpy as np
import pytest

from astra_mpi.cli import main
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files import checksum, hdf5, whole
from astra_mpi.files.shield import Shield
from astra_mpi.job import lock, log
from astra_mpi.job.lock import Lock
from astra_mpi.job.merge import merge
from astra_mpi.job.recorded import finished_summary, recorded_choices
from helpers.processes import outside
from helpers.results import REPORT, STATE, SUMMARY, open_results, write

STEP, CALLS = 1024, 6
NAMES = ["model, int8", "codebooks", "batch job", "merge", "summary", "JSON, trace", "sweep point", "HTML page"]
NAMES += ["picture", "checkpoint", "training log"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    fault_writers.make_inputs(folder)
    return folder


@pytest.fixture
def memory(tmp_path):
    """A folder where nothing waits for a disk."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


@pytest.mark.parametrize("fault", ["largest file", "call", "tmpfs"])
@pytest.mark.parametrize("name", NAMES)
def test_a_failed_write_loses_nothing(inputs, memory, name, fault):
    """One sentence, what was there stays, all under a final name is whole, and the second try gives the same bits."""
    found = {writer.name: writer for writer in fault_writers.writers(inputs)}
    trials = fault_writes.trials()
    if name not in found:
        pytest.skip(f"{name} needs a package that is not there")
    if fault not in trials:
        pytest.skip("only root may mount a file system")
    row = fault_writes.in_child(lambda: trials[fault](found[name], memory, STEP, CALLS))
    assert not row["wrong"], row["wrong"][:5]
    assert row["failed"] >= {"largest file": 2, "call": 7, "tmpfs": 0}[fault], row
    if fault == "largest file":
        assert row["tried"] > row["failed"], "no size was large enough"


def limited(n_bytes, *words, cwd):
    """A command whose files may have so many bytes -> exit code and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "astra_mpi", *map(str, words)],
        cwd=cwd, env=outside(), capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)),
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("n_bytes", [300, 9000])
def test_a_process_ends_with_one_sentence(inputs, tmp_path, n_bytes):
    """Also at its very end, where the HDF5 library lets go of what is open."""
    code, said = limited(n_bytes, "merge", "m.h5", inputs / "shard0.h5", inputs / "shard1.h5", cwd=tmp_path)
    assert code == 3
    assert said == f"astra-mpi: error: m.h5 cannot be written (File too large); {whole._CURES[errno.EFBIG]}\n"
    assert os.listdir(tmp_path) == []


def damage(path, name="outputs/embedding"):
    with h5py.File(path, "r+") as file:
        file[name][0] += 1


def test_a_part_whose_values_changed_is_made_again(tmp_path):
    results = open_results(tmp_path / "out.h5")
    for part in range(3):
        write(results, part)
    results.close()
    damage(results.folder / "part-00000000.h5")
    assert recorded_choices(tmp_path / "out.h5") == REPORT["choices"]  # of a part that is whole
    again = open_results(tmp_path / "out.h5")
    assert again.pending() == [0]
    damage(results.folder / "part-00000002.h5")
    write(again, 0)
    with pytest.raises(InputError, match=r"part-00000002\.h5 is damaged or edited .*; the same command makes it again"):
        again.join(SUMMARY, {})
    assert not (tmp_path / "out.h5").exists()
    again.close()


def test_parts_of_earlier_versions_still_resume(tmp_path):
    results = open_results(tmp_path / "out.h5")
    for part in range(3):
        write(results, part)
    results.close()
    for path in results.folder.glob("part-*.h5"):
        with h5py.File(path, "r+") as file:
            del file.attrs["checksum"]
    again = open_results(tmp_path / "out.h5")
    assert again.pending() == []
    again.join(SUMMARY, {})
    again.close()
    assert finished_summary(tmp_path / "out.h5", STATE) == SUMMARY


def test_damaged_results_are_not_complete(inputs, tmp_path, capsys):
    for name in ("shard0.h5", "shard1.h5"):
        (tmp_path / name).write_bytes((inputs / name).read_bytes())
    state = {**fault_writers._STATE, "input.shard": "0/2"}
    assert finished_summary(tmp_path / "shard0.h5", state) is not None
    assert main(["info", str(tmp_path / "shard0.h5")]) == 0
    assert "contents                          whole" in capsys.readouterr().out
    damage(tmp_path / "shard0.h5")
    with pytest.raises(InputError, match=r"shard0\.h5 is damaged or edited .*run\.resume=false"):
        finished_summary(tmp_path / "shard0.h5", state)
    with pytest.raises(InputError, match=r"shard0\.h5 is damaged or edited"):
        merge([tmp_path / "shard0.h5", tmp_path / "shard1.h5"], tmp_path / "m.h5")
    assert main(["info", str(tmp_path / "shard0.h5")]) == 2
    told = capsys.readouterr()
    assert "contents                          damaged" in told.out and "shard0.h5 is damaged or edited" in told.err
    assert main(["info", "--quick", str(tmp_path / "shard0.h5")]) == 0
    with h5py.File(tmp_path / "shard0.h5", "r+") as file:
        del file.attrs["checksum"]
    assert main(["info", str(tmp_path / "shard0.h5")]) == 0
    assert "no checksum: written by an earlier version" in capsys.readouterr().out


def test_the_checksum_is_of_contents_not_of_layout(tmp_path):
    rows = np.arange(6000, dtype=np.float32).reshape(-1, 3)
    texts = np.array(["a", "", "é" * 100], dtype=object)
    with hdf5.writing(tmp_path / "a.h5") as file:
        file["x/rows"], file["scalar"], file["none"] = rows, np.int64(3), np.zeros((0, 4), np.float16)
        file.create_dataset("texts", data=texts, dtype=h5py.string_dtype())
        file.attrs.update(name="b" * 100_000, number=1.5, list=np.arange(3), flag=True)
    with h5py.File(tmp_path / "a.h5") as file, h5py.File(tmp_path / "b.h5", "w") as other:
        other.attrs.update(file.attrs)
        other.create_dataset("x/rows", data=rows, chunks=(100, 3), compression="gzip")
        for name in ("texts", "scalar", "none"):
            file.copy(name, other)
        assert checksum.fits(file) and checksum.fits(other)
    changes = [
        lambda file: file.attrs.__setitem__("number", 1.25),
        lambda file: file.attrs.__setitem__("more", 1),
        lambda file: file["texts"].__setitem__(1, "b"),
        lambda file: file["scalar"].__setitem__((), 4),
        lambda file: file.move("none", "nothing"),
        lambda file: file["x"].attrs.__setitem__("a", "b"),
        lambda file: file.__delitem__("none"),
        lambda file: file["x/rows"].__setitem__((1999, 2), np.nextafter(rows[1999, 2], np.float32(0))),
    ]
    whole_file = (tmp_path / "a.h5").read_bytes()
    for change in changes:
        (tmp_path / "a.h5").write_bytes(whole_file)
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            change(file)
            assert checksum.fits(file) is False


def test_the_checksum_of_a_hostile_file_ends(tmp_path):
    """Claims without data, links out of the file, objects: damaged, without memory for what is claimed."""
    for build in (
        lambda file: file.create_dataset("x", (10**13,), "f4", chunks=(1 << 20,)),
        lambda file: file.create_dataset("x", (1 << 14, 1 << 14), "u1", chunks=(1 << 14, 1 << 14)),
        lambda file: file.create_dataset("x", (4,), "f4", external=[("other", 0, 16)]),
        lambda file: file.create_dataset("x", (4,), h5py.ref_dtype),
    ):
        with h5py.File(tmp_path / "h.h5", "w") as file:
            build(file)
            file.attrs["checksum"] = "0" * 64
            assert checksum.fits(file) is False


def full(*args, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_interrupt_in_the_library_is_raised_behind_it(tmp_path, monkeypatch):
    """An exception while HDF5 writes is a failed write to it."""

    def interrupted(*args):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), hdf5.writing(tmp_path / "a.h5") as file:
        monkeypatch.setattr(os, "pwrite", interrupted)
        file["x"] = np.zeros(1 << 20)
        monkeypatch.undo()
        file.check()
    assert os.listdir(tmp_path) == []


def test_the_library_reads_what_could_not_be_written(tmp_path, monkeypatch):
    with pytest.raises(AstraError, match="cannot be written"), hdf5.writing(tmp_path / "a.h5") as file:
        monkeypatch.setattr(os, "pwrite", full)
        for i in range(100):
            file[f"group{i}/x"] = np.arange(i)
            file.attrs[f"text{i}"] = "x" * 5000
        for i in range(100):
            assert file.attrs[f"text{i}"] == "x" * 5000
            np.testing.assert_array_equal(file[f"group{i}/x"], np.arange(i))
    assert os.listdir(tmp_path) == []


def test_what_is_kept_of_failed_writes_is_bounded(tmp_path, monkeypatch):
    """The largest pieces go first; small ones, such as metadata, are read again."""
    monkeypatch.setattr(os, "pwrite", full)
    handle = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    kept = Shield(whole.RawFile("a", handle))
    kept.write(b"metadata")
    values = bytes(1 << 23)
    for i in range(20):
        kept.seek(8 + i * len(values))
        kept.write(values)
    kept.seek(0)
    found = bytearray(8)
    kept.readinto(found)
    assert found == b"metadata" and sum(len(data) for _, data in kept._kept) <= 1 << 26
    os.close(handle)


def test_a_child_tells_all_that_went_wrong():
    row = {"tried": 1, "failed": 1, "wrong": ["é" * 1000] * 300}
    assert fault_writes.in_child(lambda: row) == row


def test_a_limit_is_undone():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    soft = (1 << 40, before[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    try:
        with fault_writes.largest_file(100):
            pass
        assert resource.getrlimit(resource.RLIMIT_FSIZE) == soft
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_lock_on_a_full_disk(tmp_path, monkeypatch):
    """None is left that would refuse the next run, and a holder whose beats find no room still shows that it lives."""
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(AstraError, match=r"lock cannot be written \(No space left on device\); make room"):
            Lock(tmp_path / "lock")
    assert os.listdir(tmp_path) == []
    held = Lock(tmp_path / "lock")
    before = (tmp_path / "lock").read_bytes()
    os.utime(tmp_path / "lock", (0, 0))
    monkeypatch.setattr(Path, "write_text", full)
    held.beat()
    monkeypatch.undo()
    assert (tmp_path / "lock").read_bytes() == before and time.time() - (tmp_path / "lock").stat().st_mtime < 60
    assert os.listdir(tmp_path) == ["lock"]
    held.release()
    assert os.listdir(tmp_path) == []


def test_beats_without_room_are_seen_by_others(tmp_path, monkeypatch):
    """A run elsewhere that has no room beats by the lock's time alone; it is not waited for as if it were dead."""
    monkeypatch.setattr(lock, "LOOK_EVERY_S", 0.05)
    (tmp_path / "lock").write_text(json.dumps({"machine": "other", "pid": 1, "host": "far", "token": "t"}))
    beats = iter(range(1, 100))

    def sleep(_):
        then = time.time() - 30 + next(beats)
        os.utime(tmp_path / "lock", (then, then))

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(InputError, match="in use by process 1 on far"):
        Lock(tmp_path / "lock")


def test_a_log_without_room_ends_and_the_job_goes_on(tmp_path, capsys, monkeypatch):
    logger = logging.getLogger("astra_mpi")
    before = list(logger.handlers)
    log.configure(0, None, str(tmp_path))
    log.event("first")
    monkeypatch.setattr(os, "pwrite", full)
    log.event("second")
    log.event("third")
    monkeypatch.undo()
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank-0000.log cannot be written (No space left on device)" in line and "the job goes on" in line
    lines = (tmp_path / "rank-0000.log").read_text().splitlines()
    assert len(lines) == 1 and lines[0].endswith("first")
    assert logger.handlers == before
    logger.setLevel(logging.NOTSET)
    logger.propagate = True


def test_links_modes_and_what_is_no_file(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "real.json").chmod(0o640)
    (tmp_path / "link.json").symlink_to("real.json")
    whole.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "new"
    assert (tmp_path / "real.json").stat().st_mode & 0o777 == 0o640
    whole.write_text("/dev/null", "gone")
    assert not Path("/dev/null").is_file()
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    whole.write_text(tmp_path / "pipe", "told")
    assert os.read(reader, 10) == b"told"
    os.close(reader)
    with pytest.raises(InputError, match=r"cannot be written \(Is a directory\)"):
        whole.write_text(tmp_path, "x")
    with pytest.raises(InputError, match=r"none/a cannot be written \(No such file or directory\); create its folder"):
        whole.write_text(tmp_path / "none" / "a", "x")


_TO_STDOUT = """
import os, sys
from astra_mpi.files import whole
print("before")
whole.write_text(sys.argv[1], "told\\n")
print("behind")
"""


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("place", ["pipe", "file"])
def test_standard_output_is_written_to(tmp_path, name, place):
    """Through a pipe, and redirected, where the file is open: what is printed before and behind stays."""
    (tmp_path / "link").symlink_to("/dev/stdout")
    words = [sys.executable, "-c", _TO_STDOUT, name]
    with open(tmp_path / "out.txt", "w") as out:
        goes_to = subprocess.PIPE if place == "pipe" else out
        done = subprocess.run(words, cwd=tmp_path, env=outside(), stdout=goes_to, timeout=60, check=True)
    said = done.stdout.decode() if place == "pipe" else (tmp_path / "out.txt").read_text()
    assert said == "before\ntold\nbehind\n" and sorted(os.listdir(tmp_path)) == ["link", "out.txt"]


def test_hdf5_is_not_written_to_what_is_no_file(capsys):
    assert main(["init", "llama-tiny", "/dev/null"]) == 2
    assert "/dev/null is a pipe, a device or an open file" in capsys.readouterr().err


def test_the_place_that_is_tried_is_behind_the_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "none" / "a")
    with pytest.raises(InputError, match="No such file or directory"):
        whole.check_place(tmp_path / "link")


def on_folders(call, number):
    """os.open or os.fsync that fails for folders."""

    def fails(what, *args):
        if os.path.isdir(f"/proc/self/fd/{what}" if isinstance(what, int) else what):
            raise OSError(number, os.strerror(number))
        return call(what, *args)

    return fails


def test_a_folder_that_may_not_be_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "open", on_folders(os.open, errno.EACCES))
    whole.write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, 2), (errno.EACCES, 2), (errno.ENOSPC, 3), (errno.EIO, 3)])
def test_where_no_file_can_be_begun(tmp_path, monkeypatch, number, code):
    """Wrong use where the place is wrong, a failure where the disk fails."""

    def fails(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fails)
    with pytest.raises(AstraError, match="a cannot be written") as caught:
        whole.write_text(tmp_path / "a", "x")
    assert caught.value.exit_code == code


@pytest.mark.parametrize("which", [0, 1])
def test_a_merge_whose_folder_fails_is_finished(inputs, tmp_path, monkeypatch, which):
    """The error comes behind the renaming, of the results or of their summary: nothing that is whole is removed."""
    paths, output = [inputs / f"shard{index}.h5" for index in range(2)], tmp_path / "m.h5"
    fails, seen = on_folders(os.fsync, errno.EIO), []

    def fsync(handle):
        seen.append(os.path.isdir(f"/proc/self/fd/{handle}"))
        return (fails if sum(seen) == which + 1 else real)(handle)

    real = os.fsync
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(AstraError, match="Input/output error"):
            merge(paths, output)
    before = output.read_bytes()
    with h5py.File(output) as file:
        assert checksum.fits(file)
    summary = merge(paths, output)
    assert json.loads((tmp_path / "m.json").read_text()) == summary and output.read_bytes() == before
    damage(output)
    with pytest.raises(InputError, match=r"m\.h5 exists; give another name"):
        merge(paths, output)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS"])
def test_the_cure_fits_the_reason(tmp_path, name, monkeypatch):
    number = getattr(errno, name)

    def fails(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(AstraError) as caught:
        whole.write_text(tmp_path / "a", "x")
    assert str(caught.value) == f"{tmp_path / 'a'} cannot be written ({os.strerror(number)}); {whole._CURES[number]}"
    assert caught.value.exit_code == 3 and os.listdir(tmp_path) == []
