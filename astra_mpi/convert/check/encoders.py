"""BERT: hidden states and pooled embeddings of random tokens, then texts from characters to embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from astra_mpi.convert.check.findings import Finding, held_against
from astra_mpi.convert.check.inputs import Tokens, random_tokens
from astra_mpi.convert.check.reference import Outputs, Reference, rounding
from astra_mpi.convert.check.texts import compare_texts


def compare(reference: Reference, model: Any) -> Iterator[Finding]:
    """The model file, loaded, against the reference."""
    yield from _random(reference, model)
    yield from compare_texts(reference, model)


def _random(reference: Reference, model: Any) -> Iterator[Finding]:
    tokens = random_tokens(model.config)
    embeddings, hidden = model(tokens.ids, tokens.mask, gather=True)
    expected, allowed, exact = reference.outputs(lambda torch_model: _forward(torch_model, tokens, model.config))
    keep = tokens.packed()[2]
    what = f"{len(tokens.lengths)} sequences of {', '.join(map(str, tokens.lengths))} random tokens"
    yield held_against(f"hidden states of {what}", hidden[keep], expected["hidden"], allowed)
    yield held_against(f"embeddings, {model.config.pooling}", embeddings, expected["embeddings"], allowed)
    if exact is not None:
        yield rounding(reference, expected["embeddings"], exact["embeddings"])


def _forward(torch_model: Any, tokens: Tokens, config: Any) -> Outputs:
    """Hidden states (N, D) of all tokens, and embeddings (B, D) pooled as the model file says."""
    import torch

    ids, positions, keep = (torch.from_numpy(array) for array in tokens.packed())
    out = torch_model(input_ids=ids, position_ids=positions, attention_mask=keep.long())
    hidden = out.last_hidden_state
    if config.pooling == "mean":
        pooled = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    else:
        pooled = hidden[:, 0] if config.pooling == "cls" else out.pooler_output
    if config.normalize:
        pooled = torch.nn.functional.normalize(pooled)
    pooled = pooled[:, : config.embedding_size or None]
    return {"hidden": hidden[keep].numpy(), "embeddings": pooled.numpy()}
