"""Whatever a file holds, readers accept it or refuse it with one sentence. jobs/faults/fuzz.py does this at length."""

import io
import json
import zipfile

import fuzz_damage
import fuzz_files
import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astra_mpi.checkpoint.folder import load_json
from astra_mpi.config import require
from astra_mpi.decks.deck import InputSection, load_deck
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import read_model
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.inputs.opening import open_input
from astra_mpi.network.spec import read_trace
from astra_mpi.planner.inputs import read_profile

QUICK = settings(
    derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    fuzz_files.write_all(folder)
    return folder


def refuses(read, path):
    """True if it is refused; any other exception than an InputError of one line fails the test."""
    try:
        read(path)
    except InputError as exc:
        assert "\n" not in str(exc)
        return True
    return False


def read_items(path, kind="tokens", **more):
    config = fuzz_files.VIT if kind == "images" else fuzz_files.BERT
    source = open_input(InputSection(path, kind, **more), fuzz_files.tokenizer_json(), None, config)
    require(source.n_items < 10**6, "more than the file can hold")
    source.batch(0, min(4, source.n_items))


READERS = {
    "a.h5": read_model,
    "a.toml": load_deck,
    "a.csv": read_trace,
    "a.npz": read_items,
    "a.npy": read_items,
    "a.jsonl": lambda path: read_items(path, "text"),
    "a.tsv": lambda path: read_items(path, "text"),
    "a.json": read_profile,
}


@pytest.mark.parametrize("name", READERS)
@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    refuses(READERS[name], tmp_path / name)


@QUICK
@given(value=JSON, key=st.sampled_from(sorted(fuzz_files.BERT.as_dict())))
def test_any_value_in_a_models_config(valid, tmp_path, value, key):
    """With a digest that fits, as a forger would write it."""
    path = tmp_path / "m.h5"
    path.write_bytes((valid / "model.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["config"]) | {key: value}
        file.attrs["config"] = json.dumps(config)
        fuzz_damage._sign(file)
    refuses(read_model, path)


@QUICK
@given(
    section=st.sampled_from(["model", "input", "task", "parallel", "run", "output"]),
    key=st.text(max_size=6),
    value=JSON,
)
def test_any_value_in_a_deck(tmp_path, section, key, value):
    known = {"model": "path", "input": "kind", "task": "name", "parallel": "weights", "run": "batch", "output": "path"}
    deck = fuzz_files.DECK.replace(f"[{section}]", f"[{section}]\n{json.dumps(key)} = {json.dumps(value)}")
    deck += f"\n[{section}.{known[section]}]\n" if key == "" else ""
    (tmp_path / "d.toml").write_text(deck, encoding="utf-8", errors="replace")
    refuses(load_deck, tmp_path / "d.toml")


@QUICK
@given(rows=st.lists(st.dictionaries(st.sampled_from(["text", "label", "x"]), JSON, max_size=3), max_size=4))
def test_any_json_lines(tmp_path, rows):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    refuses(lambda path: read_items(path, "text", labels="label"), tmp_path / "t.jsonl")


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deeply_nested(tmp_path, opening):
    for name, read in (("n.json", load_json), ("p.json", read_profile), ("t.jsonl", READERS["a.jsonl"])):
        (tmp_path / name).write_text(opening * 100_000)
        assert refuses(read, tmp_path / name)
    (tmp_path / "d.toml").write_text("a = " + "[" * 100_000)
    assert refuses(load_deck, tmp_path / "d.toml")


# --- HDF5, archives and pictures that are built to harm ------------------------------------------------------------


def hostile(path, build):
    with h5py.File(path, "w") as file:
        build(file)
    return path


def _bomb(file):
    file.create_dataset("tokens", (1, 1 << 28), "u1", chunks=(1, 1 << 28), compression="gzip")
    file["tokens"][0, :] = 0


HOSTILE = {
    "external link": (lambda f: f.__setitem__("tokens", h5py.ExternalLink("other.h5", "/tokens")), "link to another"),
    "soft link to itself": (lambda f: f.__setitem__("tokens", h5py.SoftLink("/tokens")), "link to another"),
    "huge shape": (lambda f: f.create_dataset("tokens", (10**12, 10**4), "i4", chunks=(1, 64)), "claims"),
    "bomb": (_bomb, "chunks of 268435456 bytes"),
    "objects": (lambda f: f.create_dataset("tokens", (2, 2), h5py.string_dtype()), "give numbers"),
    "other files": (
        lambda f: f.create_dataset("tokens", (4, 4), "i4", external=[("/etc/hostname", 0, 64)]),
        "other files",
    ),
    "empty": (lambda f: f.create_dataset("tokens", dtype="i4"), "no items"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_hdf5_inputs(tmp_path, case):
    build, words = HOSTILE[case]
    path = hostile(tmp_path / "in.h5", build)
    with pytest.raises(InputError, match=words):
        ArrayFile(path).get("tokens")


def test_link_on_the_way(tmp_path):
    hostile(tmp_path / "other.h5", lambda f: f.__setitem__("a/tokens", np.zeros((2, 2), int)))
    path = hostile(tmp_path / "in.h5", lambda f: f.__setitem__("a", h5py.ExternalLink("other.h5", "/a")))
    with pytest.raises(InputError, match="link to another"):
        ArrayFile(path).get("a/tokens")


def test_zip_bomb(tmp_path):
    """One row of 256 MiB zeros in 256 KiB, and one that is declared and not there."""
    with (
        zipfile.ZipFile(tmp_path / "in.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("tokens.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": (1, 1 << 28)})
        for _ in range(1 << 8):
            member.write(bytes(1 << 20))
    with pytest.raises(InputError, match="an item of 'tokens' has 268435456 bytes"):
        ArrayFile(tmp_path / "in.npz").get("tokens")
    with zipfile.ZipFile(tmp_path / "lzma.npz", "w", zipfile.ZIP_LZMA) as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((2, 2), int))
        archive.writestr("tokens.npy", buffer.getvalue())
    with pytest.raises(InputError, match="packed in an unusual way"):
        ArrayFile(tmp_path / "lzma.npz").get("tokens")


@pytest.mark.parametrize(
    ("side", "words"), [(20000, "decompression bomb"), (9000, "9000 x 9000 pixels; scale it down")]
)
def test_picture_bomb(tmp_path, side, words):
    from PIL import Image

    Image.new("1", (side, side)).save(tmp_path / "a.png")
    pixels = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
    with pytest.raises(InputError, match=words):
        open_input(InputSection(tmp_path, "images"), None, pixels, fuzz_files.VIT).batch(0, 1)
