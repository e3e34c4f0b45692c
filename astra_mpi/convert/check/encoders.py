"""BERT and its like: hidden states and embeddings or logits of random tokens, then texts from characters to these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from astra_mpi.convert.check.findings import Finding, held_against
from astra_mpi.convert.check.inputs import Tokens, random_tokens
from astra_mpi.convert.check.reference import Outputs, Reference, rounding
from astra_mpi.convert.check.texts import compare_texts


def compare(reference: Reference, model: Any) -> Iterator[Finding]:
    """The model file, loaded, against the reference."""
    yield from _random(reference, model)
    yield from compare_texts(reference, model)


def _random(reference: Reference, model: Any) -> Iterator[Finding]:
    tokens, config = random_tokens(model.config), model.config
    answers, hidden = model(tokens.inputs, tokens.mask, gather=True)
    expected, allowed, exact = reference.outputs(lambda torch_model: _forward(torch_model, tokens, config))
    keep = tokens.packed()[2]
    what = f"{len(tokens.lengths)} sequences of {', '.join(map(str, tokens.lengths))} random tokens"
    yield held_against(f"hidden states of {what}", hidden[keep], expected["hidden"], allowed)
    answer = f"logits of {config.n_classes} classes" if config.n_classes else f"embeddings, {config.pooling}"
    last = "answers" if "answers" in expected else "hidden"
    if last == "answers":
        yield held_against(answer, answers, expected["answers"], allowed)
    if exact is not None:
        yield rounding(reference, expected[last], exact[last])


def _forward(torch_model: Any, tokens: Tokens, config: Any) -> Outputs:
    if not any(config.windows):
        return _answers(torch_model, tokens, config)
    parts = [_answers(torch_model, one, config) for one in tokens.alone()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _answers(torch_model: Any, tokens: Tokens, config: Any) -> Outputs:
    """Hidden states (N, D) of all tokens; logits (B, classes), or embeddings (B, D) pooled as the model file says."""
    import torch

    given, keep = _given(tokens, config)
    out = torch_model.base_model(**given)
    hidden = out.last_hidden_state
    if config.n_classes:
        return {"hidden": hidden[keep].numpy(), "answers": torch_model(**given).logits.numpy()}
    if config.pooling == "mean":
        pooled = (hidden * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    elif config.pooling == "last":
        pooled = hidden[torch.arange(len(hidden)), keep.shape[1] - 1 - keep.long().flip(1).argmax(1)]
    else:
        pooled = hidden[:, 0] if config.pooling == "cls" else out.pooler_output
    if config.dense_widths:  # layers of sentence-transformers, with which texts are compared
        return {"hidden": hidden[keep].numpy()}
    if config.normalize:
        pooled = torch.nn.functional.normalize(pooled)
    pooled = pooled[:, : config.embedding_size or None]
    return {"hidden": hidden[keep].numpy(), "answers": pooled.numpy()}


def _given(tokens: Tokens, config: Any) -> tuple[dict[str, Any], Any]:
    """Arguments of transformers' model, and which of its tokens (B, T) are meant."""
    import torch

    ids, positions, keep = tokens.packed()
    # some find positions themselves, from the ids of all tokens, left out or not; windows and biases by distance are
    # of the tokens' places in the batch
    whole = config.pad_token >= 0 or any(config.windows) or config.relative_buckets
    if whole:
        ids, keep = tokens.ids, tokens.mask
    given = {"input_ids": ids, "attention_mask": keep.astype(np.int64)}
    if not whole:
        given["position_ids"] = positions
    if tokens.types is not None:
        types = np.zeros(keep.shape, np.int64)
        types[keep] = tokens.types[tokens.mask]
        given["token_type_ids"] = types
    return {name: torch.from_numpy(array) for name, array in given.items()}, torch.from_numpy(keep)
