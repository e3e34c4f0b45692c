"""Inputs larger than memory: read batch by batch, with a bound on what they take; folders of image files."""

import json
import tracemalloc
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from PIL import Image

from astra_mpi.errors import InputError
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.inputs.kinds import kind_of
from astra_mpi.inputs.records import LONGEST_LINE, Records
from astra_mpi.inputs.sources import Excerpt
from helpers.inputs import read, sequences, write

MIB = 1 << 20
WIDE_MODEL = SimpleNamespace(family="bert", vocab_size=50, max_positions=512)


@pytest.fixture
def peak():
    """A function that says how much memory, in bytes, Python and NumPy have taken at most since the test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def test_text_is_not_kept(tmp_path, peak):
    path = tmp_path / "in.jsonl"
    rows = 26_000
    with path.open("w") as file:
        file.writelines(json.dumps({"text": "a b " * 250 + "c" * (i % 3), "y": i % 2}) + "\n" for i in range(rows))
    assert path.stat().st_size > 24 * MIB
    source = read(path, "text", labels="y")
    assert source.n_items == rows and source.labels.tolist()[:3] == [0, 1, 0]
    for start in (0, 17, rows - 4):
        assert source.batch(start, start + 4)[1].all()
    assert peak() < 4 * MIB


@pytest.mark.parametrize("form", ["npy", "npz", "packed npz", "h5", "packed h5"])
def test_tokens_are_not_kept(tmp_path, form, peak):
    ids = np.random.default_rng(0).integers(0, 50, (8000, 512))
    path = tmp_path / f"in.{form.split()[-1]}"
    if form == "npy":
        np.save(path, ids)
    elif "npz" in form:
        (np.savez_compressed if "packed" in form else np.savez)(path, y=np.arange(8000), tokens=ids)
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("tokens", data=ids, compression="gzip" if "packed" in form else None)
    tracemalloc.reset_peak()
    before = peak()
    source = read(path, "tokens", WIDE_MODEL)
    for start, stop, step in ((0, 4, 1), (7000, 7003, 1), (13, 90, 25)):
        got, mask = source.batch(start, stop, step)
        np.testing.assert_array_equal(got, ids[start:stop:step])
        assert mask.all()
    assert peak() - before < ids.nbytes / 2.5  # blocks of 4 MiB and what is computed from one


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_an_npz(tmp_path, save):
    draw = np.random.default_rng(1)
    arrays = {
        "bytes": draw.integers(0, 255, (7, 3, 5), dtype=np.uint8),
        "flat": draw.normal(size=9),
        "big": draw.normal(size=(4, 6)).astype(">f4"),
        "none": np.zeros((0, 4), np.int32),
        "scalar": np.array(3),
    }
    save(tmp_path / "in.npz", **arrays)
    file = ArrayFile(tmp_path / "in.npz")
    for name, values in arrays.items():
        got = file.get(name)
        assert got.shape == values.shape and got.dtype == values.dtype
        if values.ndim:
            for key in (slice(None), slice(2, 5), slice(1, None, 3), slice(5, 1)):
                np.testing.assert_array_equal(got[key], values[key])
        if values.ndim == 2:
            np.testing.assert_array_equal(got[1:3, :2], values[1:3, :2])
    with pytest.raises(InputError, match="no dataset 'x', only bytes, flat"):
        file.get("x")


def test_npz_that_cannot_be_streamed(tmp_path):
    path = tmp_path / "in.npz"
    np.savez(path, tokens=np.array([{}, []], dtype=object))
    with pytest.raises(InputError, match="holds Python objects"):
        ArrayFile(path).get("tokens")
    by_columns = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.savez(path, tokens=by_columns)
    np.testing.assert_array_equal(ArrayFile(path).get("tokens")[:], by_columns)
    np.savez_compressed(path, tokens=by_columns)
    with pytest.raises(InputError, match="Fortran order; save np"):
        ArrayFile(path).get("tokens")


def test_lines_longer_than_the_bound(tmp_path):
    path = tmp_path / "in.txt"
    write(path, "a\n" + "b" * (LONGEST_LINE - 1) + "\n" + "b" * (LONGEST_LINE + 1))
    with pytest.raises(InputError, match=r"line 3 has more than 16 MiB"):
        Records(path, ("text",), None, kind_of("text", path))


def test_text_that_changes_while_it_is_read(tmp_path):
    path = write(tmp_path / "in.txt", "a\nb\nc\n")
    source = read(path, "text")
    assert sequences(source) == [[1], [2], [3]]
    write(path, "a b\nb\nc\n")
    with pytest.raises(InputError, match=r"in\.txt has changed while it was read"):
        source.batch(0, 2)


def test_byte_order_mark_and_columns(tmp_path):
    path = write(tmp_path / "in.tsv", "\ufeffs1\ts2\n\na\tb c\r\nd\te\n")
    source = read(path, "text", dataset=("s1", "s2"))
    assert sequences(source) == [[1], [2, 3], [4], [5]]
    ids, mask = source.batch(1, 4, 2)
    assert [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)] == [[2, 3], [5]]


def test_excerpt(tmp_path):
    path = write(tmp_path / "in.jsonl", "".join(f'{{"text": "{c}", "y": {i}}}\n' for i, c in enumerate("abcdea")))
    source = Excerpt(read(path, "text", labels="y"), range(1, 6, 2))
    assert source.n_items == 3 and source.labels.tolist() == [1, 3, 5]
    assert sequences(source) == [[2], [4], [1]]
    assert [row.tolist() for row in source.batch(1, 3)[0]] == [[4], [1]]


def make_folder(folder):
    """Images of several sizes and modes, one turned by its EXIF data -> names sorted."""
    draw = np.random.default_rng(2)
    (folder / "b").mkdir(parents=True)
    Image.fromarray(draw.integers(0, 255, (4, 6, 3), dtype=np.uint8)).save(folder / "z.png")
    Image.fromarray(draw.integers(0, 255, (9, 5), dtype=np.uint8)).save(folder / "a.PNG")
    Image.fromarray(draw.integers(0, 255, (8, 7, 4), dtype=np.uint8)).save(folder / "b" / "a.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(draw.integers(0, 255, (12, 8, 3), dtype=np.uint8)).save(folder / "b" / "c.jpeg", exif=turned)
    (folder / "notes.txt").write_text("no image")
    return ["a.PNG", "b/a.png", "b/c.jpeg", "z.png"]


def test_folder_of_images(tmp_path):
    """As `transformers` reads them."""
    from transformers import ViTImageProcessor
    from transformers.image_utils import load_image

    folder = tmp_path / "images"
    names = make_folder(folder)
    write(folder / "labels.tsv", "".join(f"{name}\t{i}\n" for i, name in enumerate(names)))
    source = read(folder, "images", labels="labels.tsv")
    assert source.n_items == 4 and source.labels.tolist() == [0, 1, 2, 3]
    size = {"height": 4, "width": 6}
    processor = ViTImageProcessor(size=size, resample=2, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    images = [load_image(str(folder / name)) for name in names]
    want = np.stack([processor(image, return_tensors="np")["pixel_values"][0] for image in images])
    np.testing.assert_allclose(source.batch(0, 4)[0], want, rtol=0, atol=1.01 / 255 / 0.25)
    np.testing.assert_allclose(source.batch(1, 4, 2)[0], want[1::2], rtol=0, atol=1.01 / 255 / 0.25)
    assert read(folder, "images").labels is None
    before = source.digest
    assert read(folder, "images", labels="labels.tsv").digest == before
    (folder / "z.png").rename(folder / "y.png")
    assert read(folder, "images").digest != before


def test_bad_folders(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()

    def fails(words, **keys):
        with pytest.raises(InputError) as caught:
            read(folder, "images", **keys).batch(0, 1)
        assert words in str(caught.value) and str(folder) in str(caught.value)

    fails("holds no .png, .jpg, .jpeg files")
    write(folder / "a.png", b"\x89PNG\r\n\x1a\nbroken")
    fails("is no PNG or JPEG that can be read")
    fails("have no dataset", dataset="x")
    fails("preprocessing", preprocess=None)
    for text, words in (
        ("b.png\t0\n", "gives no class for 'a.png'"),
        ("a.png\t0\nb.png\t0\n", "names 'b.png', which is no image"),
        ("a.png\t0\na.png\t1\n", "line 2: 'a.png' has been named before"),
        ("a.png 0\n", "is not an image's name, a tab and its class"),
        ("a.png\t10\n", "label 10 (item 0) is outside 0..9"),
    ):
        write(folder / "labels.tsv", text)
        fails(words, labels="labels.tsv")
    fails("cannot be read", labels="none.tsv")


def test_image_of_too_many_pixels(tmp_path):
    import struct
    import zlib

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    write(tmp_path / "a.png", data)
    with pytest.raises(InputError, match=r"a\.png .*pixels"):
        read(tmp_path, "images").batch(0, 1)
