"""Checkpoints of llama2.c, against its forward pass and its encoder written out here."""

import json
import struct
from itertools import pairwise

import numpy as np
import pytest
from mpi4py import MPI

import astra_mpi
from astra_mpi.cli import main
from astra_mpi.convert.llama2c import convert_llama2c, read_checkpoint, read_pieces, tokenizer_json
from astra_mpi.errors import InputError
from astra_mpi.inputs.text import Tokenizer
from helpers.llama2c import HKV, D, H, L, T, write_checkpoint, write_tokenizer

TEXTS = ["", "a", "the cat sat", " the  theatre\n", "Zürich, the hat — 猫 that", "aaaa aaa"]


def rms(x, weight):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-5) * weight


def forward(w, ids):
    """run.c: token by token, RoPE on neighbouring pairs, a key/value cache, query heads that share key heads."""
    d, cache = D // H, [[] for _ in range(L)]
    for position, token in enumerate(ids):
        x = w["embedding"][token].astype(np.float64)
        for i in range(L):
            h = rms(x, w["att_norm"][i])
            q, k, v = (w[name][i] @ h for name in ("wq", "wk", "wv"))
            for vector in (q, k):
                for j in range(0, len(vector), 2):
                    angle = position * 10000.0 ** (-(j % d) / d)
                    a, b = vector[j], vector[j + 1]
                    vector[j] = a * np.cos(angle) - b * np.sin(angle)
                    vector[j + 1] = a * np.sin(angle) + b * np.cos(angle)
            cache[i].append((k, v))
            mixed = []
            for head in range(H):
                part = slice(head // (H // HKV) * d, (head // (H // HKV) + 1) * d)
                scores = np.array([q[head * d : (head + 1) * d] @ key[part] for key, _ in cache[i]]) / np.sqrt(d)
                shares = np.exp(scores - scores.max())
                values = np.array([value[part] for _, value in cache[i]])
                mixed.append(shares @ values / shares.sum())
            x = x + w["wo"][i] @ np.concatenate(mixed)
            h = rms(x, w["ffn_norm"][i])
            gate = w["w1"][i] @ h
            x = x + w["w2"][i] @ (gate / (1 + np.exp(-gate)) * (w["w3"][i] @ h))
    return w.get("wcls", w["embedding"]) @ rms(x, w["final_norm"])


def encode(pieces, text):
    """tokenizer of run.c: <s>, a space before a text, characters or their bytes, then the best pair again and again."""
    ids = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokens = [1]
    for char in " " + text if text else "":
        tokens += [ids[char]] if char in ids else [byte + 3 for byte in char.encode()]
    while True:
        unions = [pieces[a][0] + pieces[b][0] for a, b in pairwise(tokens)]
        scored = [(pieces[ids[u]][1], -i) for i, u in enumerate(unions) if u in ids]
        if not scored:
            return tokens
        i = -max(scored)[1]
        tokens[i : i + 2] = [ids[unions[i]]]


@pytest.mark.parametrize("shared", [True, False])
def test_logits_are_those_of_run_c(tmp_path, shared):
    arrays = write_checkpoint(tmp_path / "model.bin", shared)
    assert main(["convert", str(tmp_path / "model.bin"), str(tmp_path / "model.h5")]) == 0
    model = astra_mpi.load(str(tmp_path / "model.h5"), comm=MPI.COMM_SELF, strategy="single")
    assert model.config.tied is shared
    ids = np.random.default_rng(1).integers(0, 53, T)
    np.testing.assert_allclose(model(ids[None])[0], forward(arrays, ids), atol=1e-5)


def test_tokens_are_those_of_run_c(tmp_path):
    pieces = write_tokenizer(tmp_path / "tokenizer.bin")
    assert read_pieces(tmp_path / "tokenizer.bin", len(pieces)) == pieces
    write_checkpoint(tmp_path / "model.bin", True, vocab=len(pieces))
    model, notes = convert_llama2c(tmp_path / "model.bin", tmp_path / "tokenizer.bin")
    assert not notes
    tokenizer = Tokenizer(model.tokenizer)
    for text in TEXTS:
        (ids,) = tokenizer.encode([text], 99)
        assert ids.tolist() == encode(pieces, text), text
        assert tokenizer.decode(ids) == text


def test_merges_are_sorted_by_score():
    merges = tokenizer_json([("", 0.0)] * 259 + [("a", -1), ("b", -1), ("ab", -3), ("ba", -2)])["model"]["merges"]
    assert merges == [["b", "a"], ["a", "b"]]
    assert json.dumps(merges)


def test_without_a_tokenizer_there_is_a_note(tmp_path):
    write_checkpoint(tmp_path / "model.bin", True)
    model, notes = convert_llama2c(tmp_path / "model.bin")
    assert model.tokenizer is None and "--tokenizer" in notes[0]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "too short"),
        (struct.pack("<7i", 0x616B3432, 1, 2, 3, 4, 5, 6), "--version 0"),
        (struct.pack("<7i", 0, 1, 1, 1, 1, 1, 1), "d_model"),
        (struct.pack("<7i", 8, 1, 1, 0, 1, 1, 1), "n_heads"),
        (struct.pack("<7i", 8, 8, 1, 2, 1, 9, 4), "28 bytes, its header says"),
    ],
)
def test_other_files_are_refused(tmp_path, raw, message):
    (tmp_path / "model.bin").write_bytes(raw)
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "model.bin")


def test_another_tokenizer_is_refused(tmp_path):
    pieces = write_tokenizer(tmp_path / "tokenizer.bin")
    with pytest.raises(InputError, match=f"{len(pieces)} tokens, the model 53"):
        read_pieces(tmp_path / "tokenizer.bin", 53)
    raw = (tmp_path / "tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(raw[:-1])
    with pytest.raises(InputError, match="truncated"):
        read_pieces(tmp_path / "tokenizer.bin", len(pieces))
