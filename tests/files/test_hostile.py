"""Damaged model, codebook and deck files: accepted, or refused with one sentence; links where codebooks lie."""

import random

import fuzz_damage
import fuzz_files
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astra_mpi.decks.deck import load_deck
from astra_mpi.errors import InputError
from astra_mpi.files.codecfile import read_codebooks
from astra_mpi.files.modelfile import read_model
from astra_mpi.job.info import describe

QUICK = settings(
    derandomize=True, max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    fuzz_files.write_all(folder)
    return folder


def _codebooks(path):
    with h5py.File(path.parent / "vit.h5") as file:
        digest = file.attrs["digest"]
    return read_codebooks(path, digest)


READERS = {
    "model.h5": (read_model, (fuzz_damage.damage_bytes, fuzz_damage.damage_hdf5)),
    "codebooks.h5": (_codebooks, (fuzz_damage.damage_bytes, fuzz_damage.damage_hdf5)),
    "deck.toml": (load_deck, (fuzz_damage.damage_bytes, fuzz_damage.damage_lines)),
}


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(seed=st.integers(0, 2**32 - 1), which=st.integers(0, 1))
def test_damaged_files(valid, name, seed, which):
    """What is accepted has the right shapes and is whole; everything else is an InputError of one line."""
    read, damages = READERS[name]
    path = valid / f"damaged-{name}"
    try:
        path.write_bytes(damages[which]((valid / name).read_bytes(), random.Random(seed)))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return  # HDF5 does not write what was drawn
    for reader in (read, describe) if name.endswith(".h5") else (read,):
        try:
            reader(path)
        except InputError as exc:
            assert "\n" not in str(exc) and str(path) in str(exc)


LINKS = {
    "external": h5py.ExternalLink("model.h5", "/weights"),
    "loop": h5py.SoftLink("/codec"),
    "dangling": h5py.SoftLink("/nowhere"),
}


@pytest.mark.parametrize("link", LINKS)
def test_linked_codebooks_are_refused(valid, link):
    path = valid / "linked.h5"
    path.write_bytes((valid / "codebooks.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file["codec"]
        file["codec"] = LINKS[link]
    for read in (_codebooks, describe):
        with pytest.raises(InputError, match="codec"):
            read(path)


@pytest.mark.parametrize("stored", ["packed", "declared", "objects"])
def test_entries_that_are_not_in_the_file(valid, stored):
    """A packed dataset of 2 GiB, one of 4 TB that is not there, and one of text: refused before they are read."""
    path = valid / "entries.h5"
    path.write_bytes((valid / "codebooks.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file["codec/0/codebook"]
        group = file["codec/0"]
        if stored == "packed":
            group.create_dataset("codebook", (1 << 14, 1 << 15), "f4", chunks=(1 << 10, 1 << 10), compression="gzip")
        elif stored == "declared":
            group.create_dataset("codebook", (10**9, 1024), "f4", chunks=(1, 1024))
        else:
            group.create_dataset("codebook", data=np.array(["a"], object), dtype=h5py.string_dtype())
    words = r"is object; it must be" if stored == "objects" else "stored in chunks"
    with pytest.raises(InputError, match=words):
        _codebooks(path)
