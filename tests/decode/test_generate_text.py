"""Whole greedy texts: against a loop without a cache written out here, and against transformers."""

import os
from pathlib import Path

import numpy as np
import pytest

from astra_mpi.convert.llama2c import read_checkpoint
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import ModelFile
from helpers.fakes import llama_config, random_weights

SPECS = ["single", "sp", "sp:kv"]


def plain_greedy(config, weights, prompt, n_new):
    """Llama in float64, everything anew for every token: no cache, no ranks."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    heads, kv_heads = config.n_heads, config.n_kv_heads
    d = config.d_model // heads

    def rms(x, weight):
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + config.norm_eps) * weight

    def turn(x, n):
        x = x.reshape(len(x), n, d)
        angle = np.arange(len(x))[:, None] / config.rope_theta ** (np.arange(d // 2) * 2 / d)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., : d // 2], x[..., d // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    ids = list(prompt)
    for _ in range(n_new):
        x = w["embed.word"][ids]
        hidden = np.triu(np.ones((len(ids), len(ids)), bool), 1)
        for i in range(config.n_layers):
            block = {k.removeprefix(f"blocks.{i}."): v for k, v in w.items() if k.startswith(f"blocks.{i}.")}
            h = rms(x, block["norm1.weight"])
            q, k = turn(h @ block["q.weight"], heads), turn(h @ block["k.weight"], kv_heads)
            v = (h @ block["v.weight"]).reshape(len(ids), kv_heads, d)
            mixed = np.empty_like(q)
            for head in range(heads):
                group = head * kv_heads // heads
                scores = np.where(hidden, -np.inf, q[:, head] @ k[:, group].T / np.sqrt(d))
                shares = np.exp(scores - scores.max(axis=1, keepdims=True))
                mixed[:, head] = shares @ v[:, group] / shares.sum(axis=1, keepdims=True)
            x = x + mixed.reshape(len(ids), -1) @ block["o.weight"]
            h = rms(x, block["norm2.weight"])
            gate = h @ block["gate.weight"]
            x = x + (gate / (1 + np.exp(-gate)) * (h @ block["fc1.weight"])) @ block["fc2.weight"]
        head = w["embed.word"].T if config.tied else w["head.weight"]
        ids.append(int((rms(x[-1], w["norm.weight"]) @ head).argmax()))
    return ids[len(prompt) :]


def assert_same_text(comm, config, weights, prompts, n_new=(200, 60)):
    """Every exact strategy, in both modes, from a batch of prompts of different lengths; so many tokens of each."""
    model = Model(ModelFile(config, weights), comm, get_backend("numpy", comm))
    longest = max(len(prompt) for prompt in prompts)
    ids = np.array([list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts])
    mask = np.arange(longest) < np.array([len(prompt) for prompt in prompts])[:, None]
    want = None
    if comm.rank == 0:
        want = [plain_greedy(config, weights, *pair) for pair in zip(prompts, n_new, strict=True)]
    want = comm.bcast(want)
    assert min(len(set(text)) for text in want) > 20  # one that goes round in a small circle would show little
    for spec in SPECS:
        for decode in ("local", "merged"):
            model.use(spec)
            got = model.generate(ids, mask, max_new_tokens=n_new[0], decode=decode)
            assert got.dtype == np.int32
            assert [row[:n].tolist() for row, n in zip(got, n_new, strict=True)] == want, (spec, decode)


@pytest.mark.mpi
def test_text_is_that_of_a_plain_loop(comm):
    config = llama_config(tied=False, max_positions=220)
    weights = random_weights(config, seed=1)
    for name, array in weights.items():
        if "norm" in name:
            array += 1
        elif name.startswith("blocks"):
            array *= 2
    assert_same_text(comm, config, weights, [[1, 44, 7, 30, 12], [5, 2]])


@pytest.mark.mpi
@pytest.mark.skipif("ASTRA_STORIES" not in os.environ, reason="ASTRA_STORIES names no llama2.c checkpoint")
def test_stories(comm):
    """stories260K: 200 greedy tokens after <s>, and after another beginning."""
    assert_same_text(comm, *read_checkpoint(Path(os.environ["ASTRA_STORIES"])), [[1], [1, 403, 407, 261]])


SCALED = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
CHECKPOINTS = {
    "gpt2": dict(n_embd=24, n_head=3, n_layer=2, n_positions=64, vocab_size=53),
    "llama": dict(
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        vocab_size=53,
        rope_parameters=SCALED | dict(original_max_position_embeddings=16),
    ),
}


@pytest.mark.parametrize("family", CHECKPOINTS)
def test_text_is_that_of_transformers(tmp_path, comm, family):
    """Three query heads per key head, an odd vocabulary, RoPE scaling."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from astra_mpi.convert.hugging_face import convert

    torch.manual_seed(0)
    made = {"gpt2": ("GPT2Config", "GPT2LMHeadModel"), "llama": ("LlamaConfig", "LlamaForCausalLM")}[family]
    config = getattr(transformers, made[0])(initializer_range=0.4, **CHECKPOINTS[family])
    theirs = getattr(transformers, made[1])(config).eval()
    theirs.save_pretrained(tmp_path)
    model = Model(convert(tmp_path)[0], comm, get_backend("numpy", comm))
    prompt = np.random.default_rng(3).integers(0, 53, (1, 9))
    with torch.inference_mode():
        want = theirs.generate(torch.tensor(prompt), max_new_tokens=40, do_sample=False, eos_token_id=None)[0, 9:]
    assert len(set(want.tolist())) > 8
    model.use("single")
    assert model.generate(prompt, max_new_tokens=40).tolist() == [want.tolist()]
