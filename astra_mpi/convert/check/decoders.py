"""Decoders: logits of random tokens, a greedy continuation, and texts to ids and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from astra_mpi.convert.check.findings import Finding, held_against
from astra_mpi.convert.check.inputs import Tokens, random_tokens
from astra_mpi.convert.check.reference import Outputs, Reference, rounding
from astra_mpi.convert.check.texts import compare_texts

_NEW_TOKENS = 16


def compare(reference: Reference, model: Any) -> Iterator[Finding]:
    """The model file, loaded, against the reference."""
    tokens = random_tokens(model.config)
    _, logits = model(tokens.ids, tokens.mask, gather=True)
    expected, allowed, exact = reference.outputs(lambda torch_model: _forward(torch_model, tokens))
    what = f"{len(tokens.lengths)} sequences of {', '.join(map(str, tokens.lengths))} random tokens"
    yield held_against(f"logits after each of {what}", logits[tokens.packed()[2]], expected["logits"], allowed)
    if exact is not None:
        yield rounding(reference, expected["logits"], exact["logits"])
    yield _greedy(reference, model, allowed)
    yield from compare_texts(reference, model)


def _forward(torch_model: Any, tokens: Tokens) -> Outputs:
    """Logits (N, V) after every token. One sequence at a time: padding outside all windows is NaN in transformers."""
    import torch

    ids, positions, _ = (torch.from_numpy(array) for array in tokens.packed())
    found = []
    for row, places, n in zip(ids, positions, tokens.lengths.tolist(), strict=True):
        given = {"input_ids": row[None, :n], "position_ids": places[None, :n]}
        found.append(torch_model(**given, attention_mask=torch.ones(1, n, dtype=torch.long)).logits[0].numpy())
    return {"logits": np.concatenate(found)}


def _greedy(reference: Reference, model: Any, allowed: float) -> Finding:
    """Our continuation, each token of which must be the reference's choice after the tokens before it, or as good."""
    config = model.config
    n = min(8, max(1, config.max_positions // 2))
    prompt = np.random.default_rng(1).integers(0, config.vocab_size, (1, n))
    new = model.generate(prompt, max_new_tokens=min(_NEW_TOKENS, config.max_positions - n) or 1)[0]
    new = new[new >= 0]
    whole = np.concatenate([prompt[0], new])[None]
    mask = np.ones(whole.shape, bool)
    logits = reference.outputs(lambda m: _forward(m, Tokens(whole, mask, mask.sum(axis=1))))[0]["logits"]
    choices = logits[n - 1 : -1]
    behind = choices.max(axis=1) - choices[np.arange(len(new)), new]
    what = f"greedy continuation of {n} random tokens, {len(new)} tokens"
    far = np.flatnonzero(~(behind <= 2 * allowed * np.abs(choices).max(initial=0)))
    if far.size:
        i = far[0]
        return Finding(what, wrong=f"token {i} is {new[i]} instead of {choices[i].argmax()}")
    return Finding(what)
