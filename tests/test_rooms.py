"""The house: few modules to a room, and a sentence at the door. `lint-imports` holds who may import whom."""

import ast
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "astra_mpi"
ROOMS = sorted(path.parent for path in PACKAGE.rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: path.name)
def test_room(room):
    modules = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 20, f"{room} has {len(modules)} modules; open another room"
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert said and (room == PACKAGE or 2 <= len(said.splitlines()) <= 6), f"{room}/__init__.py: what does it own?"


def test_every_room_is_in_the_wheel():
    import tomllib

    packages = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = {".".join(room.relative_to(PACKAGE.parent).parts) for room in ROOMS}
    assert rooms <= set(packages)


def test_what_jobs_import_exists():
    """Neither the type checker nor a test reads all of them."""
    missing = []
    for path in sorted((PACKAGE.parent / "jobs").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("astra_mpi"):
                module = importlib.import_module(node.module)
                names = [alias.name for alias in node.names if not _there(module, alias.name)]
                missing += [f"{path.name}: {node.module}.{name}" for name in names]
    assert not missing


def _there(module, name):
    folder = Path(module.__file__).parent / name
    return hasattr(module, name) or folder.is_dir() or folder.with_suffix(".py").exists()
