"""BERT: hidden states and pooled embeddings of random tokens, then texts from characters to embedding."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.check.findings import Finding, equal_rows, held_against, tolerance
from astra_mpi.check.inputs import TEXTS, Tokens, random_tokens
from astra_mpi.check.reference import Outputs, Reference, round_weights
from astra_mpi.deck import InputSection
from astra_mpi.inputs import open_input


def compare(reference: Reference, model: Any) -> Iterator[Finding]:
    """The model file, loaded, against the reference."""
    yield from _random(reference, model)
    if model.tokenizer is None:
        yield Finding("texts", note="not compared, for the file has no tokenizer")
    elif (reference.source / "modules.json").is_file():
        yield _sentences(reference, model)
    else:
        yield _ids(reference, model)


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


def rounding(reference: Reference, rounded: np.ndarray, exact: np.ndarray) -> Finding:
    """What the storage of the weights costs: told, not judged."""
    finding = held_against("", rounded, exact, 0)
    cost = f"{finding.difference:.1e}, {finding.relative:.1e} of the largest value"
    return Finding(f"the reference with its weights in {reference.dtype} instead of float32", note=f"changes by {cost}")


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
    return {"hidden": hidden[keep].numpy(), "embeddings": pooled.numpy()}


def text_batch(model: Any, texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> ids and mask (B, T), as a job reads them from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.jsonl")
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        source = open_input(InputSection(path, "text"), model.tokenizer, model.preprocess, model.config)
        ids, mask = source.batch(0, len(texts))
    assert mask is not None
    return ids, mask


def _ids(reference: Reference, model: Any) -> Finding:
    """Token ids of texts, special tokens and truncation included."""
    what = f"token ids of {len(TEXTS)} texts by AutoTokenizer"
    tokenizer = auto_tokenizer(reference)
    if isinstance(tokenizer, str):
        return Finding(what, note=f"not compared ({tokenizer})")
    ids, mask = text_batch(model, TEXTS)
    longest = min(tokenizer.model_max_length, model.config.max_positions)
    expected = tokenizer(list(TEXTS), truncation=True, max_length=longest)["input_ids"]
    return equal_rows(what, TEXTS, [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)], expected)


def auto_tokenizer(reference: Reference) -> Any:
    """The folder's tokenizer by transformers, or why there is none, in words."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(reference.folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # the library raises what it likes
        return f"transformers cannot read it: {next(iter(str(exc).splitlines()), type(exc).__name__)}"


def _sentences(reference: Reference, model: Any) -> Finding:
    """Embeddings of texts, from characters to pooling, by sentence-transformers."""
    what = f"SentenceTransformer.encode of {len(TEXTS)} texts"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return Finding(what, note="not compared, for sentence-transformers is not installed")
    theirs = SentenceTransformer(str(reference.source), device="cpu", local_files_only=True, trust_remote_code=False)
    if reference.dtype != "float32":
        round_weights(theirs[0].auto_model, reference.dtype)
    expected = theirs.float().encode(list(TEXTS), show_progress_bar=False)
    return held_against(what, model(*text_batch(model, TEXTS)), expected, tolerance(0))
