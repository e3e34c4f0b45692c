"""Text from prompts (docs/reference/generate.md): what is asked of `Model.generate`, and what is made of its tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

import h5py
import numpy as np

from astra_mpi.config import require
from astra_mpi.decks.deck import TaskSection
from astra_mpi.decode.drafts import MOST_DRAFTS
from astra_mpi.decode.sampling import Sampler
from astra_mpi.errors import InputError
from astra_mpi.inputs.sources import Source
from astra_mpi.inputs.text import Tokenizer, tokenizer_of
from astra_mpi.job.continuation import StopTexts, TextStream, continuation
from astra_mpi.ranks.terminal import raise_if_lost

#: prompts looked at in one go when they are checked
_BLOCK = 64


class PromptSource:
    """Another source's items as prompts: tokens that are left out leave no gap.

    InputError names the first prompt that is empty, or leaves no room in `max_positions`.
    """

    def __init__(self, source: Source, where: str, max_positions: int) -> None:
        self.source, self.where, self.max_positions = source, where, max_positions
        self.n_items, self.labels, self.digest = source.n_items, source.labels, source.digest
        for start in range(0, self.n_items, _BLOCK):
            _, mask = self.batch(start, min(start + _BLOCK, self.n_items))
            for i, n in enumerate(mask.sum(axis=1), start):
                self._check(i, int(n))

    def batch(self, start: int, stop: int, step: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """-> ids int32 (B, T), mask bool (B, T), True where a prompt's tokens are: at its beginning."""
        ids, mask = self.source.batch(start, stop, step)
        keep = np.ones(ids.shape, bool) if mask is None else np.asarray(mask, bool)
        lengths = keep.sum(axis=1)
        present = np.arange(lengths.max(initial=0)) < lengths[:, None]  # (B, T)
        packed = np.zeros(present.shape, np.int32)
        packed[present] = ids[keep]
        return packed, present

    def _check(self, item: int, n: int) -> None:
        require(n > 0, f"{self.where}: item {item} is an empty prompt, with no token to go on from; remove it")
        require(
            n < self.max_positions,
            f"{self.where}: the prompt of item {item} fills this model's {self.max_positions} positions and leaves no"
            " room for a new token; shorten it, or cut prompts with input.max_tokens",
        )


class Generator:
    """`Model.generate` as [task] says, on all ranks alike. InputError on settings that do not fit the model."""

    def __init__(self, task: TaskSection, model: Any, seed: int, decode: str | None = None) -> None:
        if task.max_new_tokens is None:
            raise InputError("task.max_new_tokens is missing; give a positive integer")
        Sampler(task.temperature, task.top_k, task.top_p)  # checks them before any work
        self.model, self.task, self.seed = model, task, seed
        from astra_mpi.job.drafts import open_draft  # which starts MPI; `merge` only reads what is written here

        self.draft = open_draft(task.draft, model)
        self.draft_tokens = task.draft_tokens or MOST_DRAFTS
        self.max_new_tokens: int = task.max_new_tokens
        self.decode = decode or task.decode
        self.stop, texts = _stops(task, model)
        #: what ends a text beside `stop`
        self.stop_texts: StopTexts | None = None
        if texts:
            self.stop_texts = StopTexts(tokenizer_of(model.tokenizer, model.config.vocab_size), texts)

    def __call__(
        self,
        ids: np.ndarray,
        mask: np.ndarray,
        numbers: Sequence[int],
        on_tokens: Callable[[int, np.ndarray], None] | None = None,
    ) -> np.ndarray:
        """Prompts (B, T), mask (B, T), their numbers (B,) in the whole input -> (B, max_new_tokens) int32, -1 after a
        sequence's end; collective. on_tokens: called on rank 0 with each step and its ids (B,)."""
        settings: dict[str, Any] = dict(sample=self.sampler(numbers), stop=self.stop, decode=self.decode)
        settings |= dict(far=self.task.far, on_tokens=on_tokens, ends=self.stop_texts)
        if self.draft is not None:
            settings |= dict(draft=self.draft, draft_tokens=self.draft_tokens)
        tokens: np.ndarray = self.model.generate(ids, mask, max_new_tokens=self.max_new_tokens, **settings)
        return tokens

    def sampler(self, numbers: Sequence[int]) -> Sampler:
        """Of prompts with these numbers (B,) in the whole input."""
        task = self.task
        return Sampler(task.temperature, task.top_k, task.top_p, self.seed, tuple(int(i) for i in numbers))


def _stops(task: TaskSection, model: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The model's own end tokens and those of task.stop, in order, each once; and the texts of task.stop that are no
    names of special tokens."""
    given = task.stop if isinstance(task.stop, tuple) else () if task.stop is None else (task.stop,)
    found, texts = [] if task.ignore_end else end_tokens(model), []
    highest = model.config.vocab_size - 1
    for stop in given:
        if isinstance(stop, int):
            require(0 <= stop <= highest, f"task.stop: token {stop} is outside 0..{highest}, this model's vocabulary")
            found.append(stop)
            continue
        named = tokenizer_of(model.tokenizer, model.config.vocab_size).special_id(stop)
        found += [] if named is None else [named]
        texts += [stop] if named is None else []
    return tuple(dict.fromkeys(found)), tuple(texts)


def end_tokens(model: Any) -> list[int]:
    """The tokens with which a model ends what it says, as its file has them."""
    return [int(i) for i in (model.preprocess or {}).get("end_tokens", ())]


def outputs(tokens: np.ndarray, prompts: Sequence[np.ndarray], tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
    """Tokens (B, n), -1 after the end, as they are kept; with their text (B,) where there is a tokenizer."""
    counts = (tokens >= 0).sum(axis=1)
    kept = {"tokens": tokens.astype(np.int32), "n_tokens": counts.astype(np.int32)}
    if tokenizer is None:
        return kept
    texts = [continuation(tokenizer, p, row[:n]) for p, row, n in zip(prompts, tokens, counts, strict=True)]
    # HDF5's strings end at a zero byte
    return kept | {"text": np.array([text.replace("\0", "\ufffd") for text in texts], h5py.string_dtype())}


class Printer:
    """One sequence's text on a terminal or in a pipe as it comes, the prompt first. Only rank 0 has one.

    Once standard output cannot be written, whoever hands text on is told: generating it would be in vain. What is lost
    of another stream, beside the results of a job, is lost.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, stream: TextIO | None = None) -> None:
        self._text, self._stream = TextStream(tokenizer, prompt), sys.stderr if stream is None else stream
        self._print(tokenizer.decode(prompt))

    def __call__(self, step: int, ids: np.ndarray) -> None:
        if ids[0] >= 0:
            self._print(self._text.push(int(ids[0])))

    def close(self) -> None:
        """What was held back, and the end of the line."""
        self._print(self._text.finish() + "\n")

    def _print(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
        if self._stream is sys.stdout:
            raise_if_lost(self._stream)


def metrics(reports: Iterable[Mapping[str, Any]], n_tokens: np.ndarray) -> dict[str, Any]:
    """What the batches' reports say together; n_tokens (N,) of all sequences. Times are medians over batches, the
    cache is that of the batch that needs most."""
    parts = [report["generation"] for report in reports]
    later = [part["per_token_s"]["median"] for part in parts if part["per_token_s"]["median"] is not None]
    largest = max(parts, key=lambda part: part["full_cache_bytes"])
    ends = [end for part in parts for end in part["ended"]]
    return {
        "new_tokens": int(n_tokens.sum()),
        "ended": {end: ends.count(end) for end in sorted(set(ends))},
        "first_token_s": float(np.median([part["first_token_s"] for part in parts])),
        "per_token_s": float(np.median(later)) if later else None,
        "tokens_per_s": float(n_tokens.sum() / sum(map(seconds, parts))),
        "decode": sorted({part["decode"] for part in parts}),
        "decode_bytes": np.sum([part["decode_bytes"] for part in parts], axis=0).tolist(),
        "drafts": _drafts([part["drafts"] for part in parts if part.get("drafts")]),
        "cache_bytes": largest["cache_bytes"],
        "full_cache_bytes": largest["full_cache_bytes"],
    }


def _drafts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the batches' drafts gave together; None without drafts."""
    if not parts:
        return None
    checks = sum(part["checks"] for part in parts)
    drafted, accepted = (sum(part[name] for part in parts) for name in ("drafted", "accepted"))
    return {
        "from": parts[0]["from"],
        "drafted": drafted,
        "accepted": accepted,
        "passes": sum(part["passes"] for part in parts),
        "checks": checks,
        "tokens_per_pass": (checks + accepted) / checks if checks else None,
    }


def seconds(part: Mapping[str, Any]) -> float:
    """From the prompts of a batch to its last token."""
    return float(part["first_token_s"] + (part["per_token_s"]["mean"] or 0) * (max(part["new_tokens"]) - 1))
