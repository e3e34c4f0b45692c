"""Texts from characters to token ids, to text again, and to embeddings, on both sides."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.check.findings import Finding, equal_rows, held_against, tolerance
from astra_mpi.check.reference import Reference, first_line, quiet, round_weights
from astra_mpi.deck import InputSection
from astra_mpi.inputs import open_input
from astra_mpi.text import Tokenizer

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "MiXeD CaSe and UPPER CASE, with 1234567890 and 3.14159!",
    "Crème brûlée, naïve façade, Zürich, Łódź, smörgåsbord, Ångström",
    "e\u0301 and \u00e9 are one letter; \ufb01 is a ligature, \u2460 a number, \uff21\uff22 wide letters",
    "中文字符和日本語のテキスト、한국어도 있다。",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "emoji 🙂 👩‍👩‍👧 🇨🇭 and a flag",
    "  leading,   inner    and trailing spaces  ",
    "tabs\tand\nnew\n\nlines\r\nof several kinds\u00a0\u2003",
    "soft\u00adhyphen, zero\u200bwidth, \ufeffmark, right-to-left \u200f",
    "don't can't it's we'll I'm they've 'quoted' \"double\" “curly” — dash … dots",
    "[CLS] [SEP] [MASK] [PAD] <s> </s> <unk> <|endoftext|> <pad>",
    "https://example.org/a?b=c&d=e#f name@example.org C:\\dir\\file.txt",
    "def f(x):\n    return x ** 2  # comment\n",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaftskapitän",
    "a",
    "ß İ ı ǅ ς",
    "word " * 600,
    "x" * 300,
    "字" * 700,
)


def compare_texts(reference: Reference, model: Any) -> Iterator[Finding]:
    """As the source's own library reads them: sentence-transformers, or the tokenizer of transformers."""
    if not reference.is_folder:
        yield Finding("texts", note="not compared, for transformers does not read tokenizers of llama2.c")
    elif model.tokenizer is None:
        yield Finding("texts", note="not compared, for the file has no tokenizer")
    elif (reference.source / "modules.json").is_file():
        yield _sentences(reference, model)
    else:
        yield from _tokenizers(reference, model)


def _tokenizers(reference: Reference, model: Any) -> Iterator[Finding]:
    """Token ids of texts, special tokens and truncation included, and for decoders texts of ids."""
    from transformers import AutoTokenizer

    what = f"token ids of {len(TEXTS)} texts by AutoTokenizer"
    try:
        theirs = AutoTokenizer.from_pretrained(reference.folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # the library raises what it likes
        yield Finding(what, note=f"not compared, for transformers cannot read it ({first_line(exc)})")
        return
    ids, mask = _batch(model, TEXTS)
    longest = min(theirs.model_max_length, model.config.max_positions)
    expected = theirs(list(TEXTS), truncation=True, max_length=longest)["input_ids"]
    yield equal_rows(what, TEXTS, [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)], expected)
    if model.family.causal:
        rng, n = np.random.default_rng(2), min(len(theirs), model.config.vocab_size)
        rows = [*map(np.array, expected), *rng.integers(0, n, (8, 12))]
        texts = [str(theirs.decode(row.tolist(), skip_special_tokens=True)) for row in rows]
        ours = Tokenizer(model.tokenizer)
        yield equal_rows(f"texts of {len(rows)} rows of ids", texts, [ours.decode(row) for row in rows], texts)


def _batch(model: Any, texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Texts -> ids and mask (B, T), as a job reads them from a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "texts.jsonl")
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        source = open_input(InputSection(path, "text"), model.tokenizer, model.preprocess, model.config)
        ids, mask = source.batch(0, len(texts))
    assert mask is not None
    return ids, mask


def _sentences(reference: Reference, model: Any) -> Finding:
    """Embeddings of texts, from characters to pooling, by sentence-transformers."""
    what = f"SentenceTransformer.encode of {len(TEXTS)} texts"
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return Finding(what, note="not compared, for sentence-transformers is not installed")
    with quiet():
        theirs = SentenceTransformer(
            str(reference.source),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    if reference.dtype != "float32":
        round_weights(theirs[0].auto_model, reference.dtype)
    expected = theirs.float().encode(list(TEXTS), show_progress_bar=False)
    return held_against(what, model(*_batch(model, TEXTS)), expected, tolerance(0))
