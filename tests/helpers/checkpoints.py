"""Random models of `transformers`: saved, converted, run, and compared with ours."""

import time

import numpy as np

import astra_mpi
from astra_mpi.convert.hugging_face import convert
from astra_mpi.errors import raise_together
from astra_mpi.files.modelfile import write_model
from helpers.architectures import ARCHITECTURES

ATOL = 1e-4


SIZES = dict(hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=40)


BERT = SIZES | dict(vocab_size=50, max_position_embeddings=20)


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


def save_architecture(folder, name, seed=0):
    """One of `ARCHITECTURES` with every weight random, saved to `folder`/hf and converted to `folder`/model.h5."""
    import torch
    import transformers

    kind, settings, attention = ARCHITECTURES[name]
    torch.manual_seed(seed)
    config = getattr(transformers, kind).config_class(**settings)
    config._attn_implementation = attention
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder / "hf")
    write_model(folder / "model.h5", convert(folder / "hf")[0])
    return model


def alone(theirs, ids, mask):
    """`logits` of each sequence by itself, up to its last token: longrope turns by the longest sequence of a batch."""
    found = np.zeros((*ids.shape, theirs.config.vocab_size), np.float32)
    for row, kept, out in zip(ids, mask, found, strict=True):
        end = int(np.flatnonzero(kept).max(initial=-1)) + 1
        if end:
            out[:end] = logits(theirs, row[None, :end], kept[None, :end])[0]
    return found


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


VITS = {
    "classifier": ("ViTForImageClassification", dict(image_size=8, patch_size=2, num_channels=3, num_labels=5)),
    "one-row": ("ViTModel", dict(image_size=(3, 21), patch_size=3, num_channels=1, qkv_bias=False, hidden_act="relu")),
    "one-patch": ("ViTModel", dict(image_size=5, patch_size=5, num_channels=2, hidden_act="gelu_new")),
}


RIGHT = np.arange(13) < np.array([13, 1, 6])[:, None]  # padding on the right


LEFT = RIGHT[:, ::-1]


HOLES = np.random.default_rng(1).random((3, 13)) < 0.5


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
