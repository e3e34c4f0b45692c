"""Reading what users have, and one sentence for everything that does not fit."""

from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from astra_mpi.decks.deck import InputSection
from astra_mpi.errors import InputError
from astra_mpi.inputs.opening import open_input
from helpers.inputs import IMAGE_MODEL, TEXT_MODEL, read, sequences, write


def hdf5(path: Path, **arrays) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


def test_plain_text_one_item_per_line(tmp_path):
    path = write(tmp_path / "in.txt", "a b c\r\n\n  \nc\u2028 a\n d e a b c d e\n")
    source = read(path, "text", max_tokens=5)
    assert sequences(source) == [[1, 2, 3], [3, 1], [4, 5, 1, 2, 3]]
    ids, mask = source.batch(1, 3)
    assert ids.dtype == np.int32 and ids.shape == (2, 5) and mask.sum() == 7
    assert max(map(len, sequences(read(path, "text")))) == TEXT_MODEL.max_positions
    assert source.digest != read(write(tmp_path / "in.txt", "a"), "text").digest


def test_json_lines(tmp_path):
    path = write(tmp_path / "in.jsonl", '{"text": "a", "q": "b c", "y": 1}\n\n{"text": "b", "q": "d\u2028", "y": 0}\n')
    assert sequences(read(path, "text")) == [[1], [2]]
    source = read(path, "text", dataset="q", labels="y")
    assert sequences(source) == [[2, 3], [4]]
    assert source.labels.tolist() == [1, 0]


def test_tsv_columns_row_after_row(tmp_path):
    path = write(tmp_path / "in.tsv", 'y\ts1\ts2\n3\ta\tb "c\n4\td\te\textra\n')
    assert sequences(read(path, "text", dataset="s2")) == [[2, 0, 3], [5]]
    source = read(path, "text", dataset=("s1", "s2"), labels="y")
    assert sequences(source) == [[1], [2, 0, 3], [4], [5]]
    assert source.labels.tolist() == [3, 3, 4, 4]


@pytest.mark.parametrize("form", ["npy", "npz", "h5"])
def test_tokens(tmp_path, form):
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 0, 0, 0]], dtype=np.uint16)
    arrays = {"tokens": ids, "mask": [[1, 1, 0, 1], [1] * 4, [1, 0, 0, 0]], "lengths": [2, 4, 0], "y": [1, 2, 3]}
    path = tmp_path / f"in.{form}"
    if form == "npy":
        np.save(path, ids)
    elif form == "npz":
        np.savez(path, **arrays)
    else:
        hdf5(path, **arrays)
    assert sequences(read(path, "tokens", max_tokens=3)) == [[1, 2, 3], [5, 6, 7], [9, 0, 0]]
    if form != "npy":
        masked = read(path, "tokens", mask="mask", labels="y", max_tokens=3)
        assert sequences(masked) == [[1, 2], [5, 6, 7], [9]]
        assert masked.labels.tolist() == [1, 2, 3]
        assert sequences(read(path, "tokens", mask="lengths")) == [[1, 2], [5, 6, 7, 8], []]


def test_max_tokens_default_is_the_model_s_own(tmp_path):
    """As MiniLM: trained for fewer tokens than it has positions; a deck may still ask for more."""
    text, tokens = write(tmp_path / "in.txt", "a b c d e a b c"), tmp_path / "in.npy"
    np.save(tokens, [[1, 2, 3, 4, 5, 1, 2, 3]])
    for path, kind in ((text, "text"), (tokens, "tokens")):
        for own, asked, length in ((4, None, 4), (4, 5, 5), (9, None, 6)):
            source = read(path, kind, preprocess={"max_tokens": own}, max_tokens=asked)
            assert [len(row) for row in sequences(source)] == [length]
        assert [len(row) for row in sequences(read(path, kind, preprocess=None))] == [6]


def test_dropped_tokens_may_hold_anything(tmp_path):
    path = hdf5(tmp_path / "in.h5", tokens=[[1, -1], [999, 3]], mask=[[1, 0], [0, 1]])
    assert sequences(read(path, "tokens", mask="mask")) == [[1], [3]]


def test_images(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    normalised = ((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    path = hdf5(tmp_path / "in.h5", images=pixels, ready=normalised, y=np.arange(5))
    source = read(path, "images", labels="y")
    assert source.n_items == 5 and source.labels.tolist() == [0, 1, 2, 3, 4]
    images, mask = source.batch(1, 4)
    assert mask is None and images.dtype == np.float32
    np.testing.assert_allclose(images, normalised[1:4], atol=1e-6)
    np.testing.assert_array_equal(read(path, "images", dataset="ready").batch(3, 5)[0], normalised[3:])
    grey = SimpleNamespace(family="vit", image_size=(4, 6), channels=1)
    np.save(tmp_path / "grey.npy", pixels[..., 0])
    one = {"size": [4, 6], "mean": [0.5], "std": [0.25]}
    got = read(tmp_path / "grey.npy", "images", grey, one).batch(0, 5)[0]
    np.testing.assert_allclose(got, normalised[:, :1], atol=1e-6)


def fails(words: list[str], path: Path, kind: str, *args, **keys):
    with pytest.raises(InputError) as caught:
        read(path, kind, *args, **keys)
    for word in [str(path), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "keys", "words"),
    [
        ("in.txt", b"a\n\xff", {}, ["not UTF-8 at byte 2"]),
        ("in.txt", "\n \n", {}, ["holds no items"]),
        ("in.txt", "a", {"labels": "y"}, ["has no labels"]),
        ("in.txt", "a", {"dataset": "body"}, ["no field 'body'", "text"]),
        ("in.csv", "a", {}, [".tsv", "'.csv'"]),
        ("in.jsonl", '{"text": "a"}\n{', {}, ["line 2", "not valid JSON"]),
        ("in.jsonl", "[1]", {}, ["line 1", "list"]),
        ("in.jsonl", '{"body": "a"}', {}, ["line 1", "no field 'text'", "body", "input.dataset"]),
        ("in.jsonl", '{"text": 3}', {}, ["line 1", "3 is not text"]),
        ("in.jsonl", '{"text": "a", "y": 1.5}', {"labels": "y"}, ["line 1", "label 1.5"]),
        ("in.tsv", "text\ty\na", {}, ["line 2", "1 columns"]),
        ("in.tsv", "text\ty\na\tpos", {"labels": "y"}, ["line 2", "label 'pos'"]),
        ("in.tsv", "text\ty\n", {}, ["holds no items"]),
    ],
)
def test_bad_text(tmp_path, name, content, keys, words):
    fails(words, write(tmp_path / name, content), "text", **keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"dataset": "none"}, ["no dataset 'none'", "deep/tokens", "tokens"]),
        ({"dataset": "deep"}, ["no dataset 'deep'"]),
        ({"dataset": "flat"}, ["(4,)", "(items, tokens)"]),
        ({"dataset": "real"}, ["float64", "integers"]),
        ({"dataset": "large"}, ["token id 50 (item 1, position 0)", "0..49"]),
        ({"dataset": "negative"}, ["token id -1 (item 0, position 1)"]),
        ({"mask": "flat"}, ["'flat' has shape (4,)", "(2, 3)"]),
        ({"labels": "flat"}, ["'flat'", "integers (2,)"]),
        ({"labels": "nowhere"}, ["no dataset 'nowhere'"]),
        ({"dataset": ("tokens", "large")}, ["input.dataset"]),
    ],
)
def test_bad_tokens(tmp_path, keys, words):
    arrays = {"tokens": np.ones((2, 3), int), "deep/tokens": [[1]], "flat": np.ones(4, int), "real": np.ones((2, 3))}
    path = hdf5(tmp_path / "in.h5", **arrays, large=[[49], [50]], negative=[[1, -1]])
    fails(words, path, "tokens", **keys)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ["4 channels", "takes 3"]),
        ({"dataset": "grey"}, ["1 channels"]),
        ({"dataset": "planes"}, ["2 channels"]),
        ({"dataset": "small"}, ["3 x 6", "4 x 6", "uint8"]),
        ({"dataset": "ints"}, ["int64", "uint8 (items, height, width, channels)"]),
        ({"dataset": "good", "labels": "y"}, ["label 10 (item 1)", "0..9"]),
        ({"dataset": "good", "preprocess": None}, ["preprocessing", "(items, 3, 4, 6)"]),
    ],
)
def test_bad_images(tmp_path, keys, words):
    arrays = {"images": np.zeros((2, 4, 6, 4), np.uint8), "grey": np.zeros((2, 4, 6), np.uint8), "y": [0, 10]}
    floats = {"planes": np.zeros((2, 2, 4, 6), np.float32), "small": np.zeros((2, 3, 3, 6), np.float32)}
    good = np.zeros((2, 4, 6, 3), np.uint8)
    fails(words, hdf5(tmp_path / "in.h5", **arrays, **floats, ints=good.astype(int), good=good), "images", **keys)


def test_image_that_is_not_finite(tmp_path):
    images = np.zeros((4, 3, 4, 6), np.float32)
    images[2, 1, 0, 0] = np.nan
    source = read(hdf5(tmp_path / "in.h5", images=images), "images")
    source.batch(0, 2)
    with pytest.raises(InputError, match=r"in\.h5: image 2 holds NaN or Inf"):
        source.batch(1, 4)


def test_files_that_cannot_be_read(tmp_path):
    fails(["does not exist"], tmp_path / "none.txt", "text")
    fails(["does not exist"], tmp_path, "tokens")
    for name in ("in.h5", "in.npz", "in.npy"):
        fails(["cannot be read"], write(tmp_path / name, b"no array"), "tokens")
    np.save(tmp_path / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    fails(["cannot be read"], tmp_path / "objects.npy", "tokens")
    fails(["'.bin'"], write(tmp_path / "in.bin", b""), "tokens")


def test_inputs_that_do_not_fit_the_model(tmp_path):
    path = write(tmp_path / "in.txt", "a")
    for keys, words in (
        (
            {"kind": "images", "config": TEXT_MODEL},
            "input.kind = 'images' does not fit a bert model; give text or tokens",
        ),
        ({"kind": "text", "config": IMAGE_MODEL}, "give images"),
        ({"kind": "text", "max_tokens": 7}, "input.max_tokens = 7 is more than this model's 6 positions"),
        ({"kind": "text", "mask": "m"}, "input.mask is for input.kind = 'tokens' only"),
    ):
        with pytest.raises(InputError, match=words.replace(".", r"\.")):
            read(path, **keys)
    with pytest.raises(InputError, match=r"no tokenizer; convert a folder with tokenizer\.json"):
        open_input(InputSection(path=path, kind="text"), None, None, TEXT_MODEL)
