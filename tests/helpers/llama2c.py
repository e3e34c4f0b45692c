"""Files of llama2.c."""

import struct

import numpy as np

D, F, L, H, HKV, T = 24, 37, 2, 6, 2, 11


def write_checkpoint(path, shared, vocab=53, seed=0):
    """-> the arrays by llama2.c's names, written as its legacy export does."""
    rng, kv = np.random.default_rng(seed), D // H * HKV
    shapes = {
        "embedding": (vocab, D), "att_norm": (L, D), "wq": (L, D, D), "wk": (L, kv, D), "wv": (L, kv, D),
        "wo": (L, D, D), "ffn_norm": (L, D), "w1": (L, F, D), "w2": (L, D, F), "w3": (L, F, D), "final_norm": (D,),
        "cos": (T, D // H // 2), "sin": (T, D // H // 2),
    }  # fmt: skip
    if not shared:
        shapes["wcls"] = (vocab, D)
    arrays = {name: rng.normal(0, 0.3, shape).astype("<f4") for name, shape in shapes.items()}
    header = struct.pack("<7i", D, F, L, H, HKV, vocab if shared else -vocab, T)
    path.write_bytes(header + b"".join(array.tobytes() for array in arrays.values()))
    return arrays


def write_tokenizer(path):
    """Letters, and longer pieces whose scores are no order of their length."""
    words = [" ", "a", "t", "h", "e", "c", "s", "th", "the", " the", " t", "he", "at", " c", "aa", "hat", " th", "ü"]
    scores = [-9, -9, -9, -9, -9, -9, -9, -1, -4, -3, -2, -5, -2.5, -6, -7, -8, -3.5, -9]
    pieces = [("<unk>", 0), ("\n<s>\n", 0), ("\n</s>\n", 0), *((f"<0x{b:02X}>", 0) for b in range(256))]
    pieces += zip(words, scores, strict=True)
    raw = b"".join(struct.pack("<fi", s, len(p.encode())) + p.encode() for p, s in pieces)
    path.write_bytes(struct.pack("<i", 7) + raw)
    return pieces
