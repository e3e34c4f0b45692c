"""The house: few modules to a room, and a sentence at the door. `lint-imports` holds who may import whom."""

import ast
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
