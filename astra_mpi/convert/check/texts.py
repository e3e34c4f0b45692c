"""Texts from characters to token ids, to text again, and to embeddings, on both sides."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.convert.check import gguf
from astra_mpi.convert.check.findings import Finding, equal_rows, held_against, tolerance
from astra_mpi.convert.check.libraries import quiet, reads
from astra_mpi.convert.check.reference import INSTALL_SENTENCES, Reference, round_weights
from astra_mpi.convert.sentence import SentenceEncoder, read_encoder
from astra_mpi.convert.sentence_text import read_sentence_text
from astra_mpi.decks.deck import InputSection
from astra_mpi.inputs.opening import open_input
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.models.decoder import Decoder

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
    if reference.source.suffix == ".bin":
        yield Finding("texts", note="not compared, for transformers does not read tokenizers of llama2.c")
        return
    if model.tokenizer is None:
        yield Finding("texts", note="not compared, for the file has no tokenizer")
        return
    if not reference.is_folder:
        ids, mask = _batch(model, TEXTS)
        ours = [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
        yield from gguf.compare_texts(reference.source, TEXTS, ours)
        return
    encoder = read_encoder(reference.source)
    if encoder is None:
        yield from _tokenizers(reference, model)
    elif find_spec("sentence_transformers") is None:
        yield from _sentences_by_tokens(reference, model, encoder)
    else:
        yield _sentences(reference, model)


def _tokenizers(reference: Reference, model: Any, longest: float | None = None) -> Iterator[Finding]:
    """Token ids of texts, special tokens and truncation included, and for decoders texts of ids.

    longest: of the folder's sentence settings, instead of the tokenizer's own.
    """
    what = f"token ids of {len(TEXTS)} texts by AutoTokenizer"
    with reads(f"the tokenizer of {reference.folder}"):
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(reference.folder, local_files_only=True, trust_remote_code=False)
        most = int(min(longest or theirs.model_max_length, model.config.max_positions))
        expected = theirs(list(TEXTS), truncation=True, max_length=most)["input_ids"]
    ids, mask = _batch(model, TEXTS)
    yield equal_rows(what, TEXTS, [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)], expected)
    if isinstance(model.family, Decoder):
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
    with quiet(), reads(str(reference.source), "sentence-transformers"):
        from sentence_transformers import SentenceTransformer

        theirs = SentenceTransformer(
            str(reference.source),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
        longest, positions = theirs.max_seq_length, model.config.max_positions
        if longest is None or longest > positions:  # it would fail on longer texts
            theirs.max_seq_length = positions
        if reference.dtype != "float32":
            round_weights(theirs[0].auto_model, reference.dtype)
        expected = theirs.float().encode(list(TEXTS), show_progress_bar=False)
    return held_against(what, model(*_batch(model, TEXTS)), expected, tolerance(0))


def _sentences_by_tokens(reference: Reference, model: Any, encoder: SentenceEncoder) -> Iterator[Finding]:
    """Token ids alone, where the sentence settings leave the text and its tokenizer as they are."""
    missing = f"for sentence-transformers is not installed ({INSTALL_SENTENCES})"
    yield Finding("embeddings of texts", note=f"NOT COMPARED, {missing}")
    settings = read_sentence_text(encoder.transformer)
    own = {
        "a default prompt": encoder.default_prompt is not None and encoder.prompts[encoder.default_prompt],
        "do_lower_case": settings.lower_case,
        "arguments of the tokenizer": settings.overrides,
    }
    if any(own.values()):
        told = ", ".join(name for name in own if own[name])
        yield Finding("token ids of texts", note=f"NOT COMPARED, for the sentence settings have {told}, and {missing}")
    else:
        yield from _tokenizers(reference, model, settings.max_length)
