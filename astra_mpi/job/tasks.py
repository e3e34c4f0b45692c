"""What a batch job does with a model: the input it opens, what it asks of the model, what it keeps of the answer."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from astra_mpi.config import require
from astra_mpi.decks.deck import Deck
from astra_mpi.inputs.kinds import kinds_of
from astra_mpi.inputs.opening import open_input
from astra_mpi.inputs.sources import Excerpt, Source, TextSource
from astra_mpi.inputs.text import Tokenizer
from astra_mpi.inputs.windows import WindowSource, open_windows, window_scores
from astra_mpi.job import generation
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder
from astra_mpi.planner.trial import ITEMS
from astra_mpi.ranks.broadcast import broadcast_integers

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.engine import Model

Outputs = Mapping[str, np.ndarray]


class Part(NamedTuple):
    """A batch as the one rank knows it that hands its outputs on."""

    numbers: range  # of its items in the whole input
    about: np.ndarray  # (B,) int64: what the task's `about` says of them, or nothing (0,)


def check_task(deck: Deck, config: Any) -> None:
    """InputError if the model cannot do the task."""
    wanted: tuple[str, ...]
    if issubclass(FAMILIES.get(config.family, object), Decoder):
        wanted, what = ("perplexity", "generate"), ""
    elif n_classes := getattr(config, "n_classes", 0):
        wanted, what = ("classify",), " with a classifier"
        wanted += ("rerank",) * (n_classes == 1 and getattr(config, "pairs", False))
        if getattr(config, "pairs", False):
            what += (
                f" of {n_classes} class{'es' * (n_classes > 1)}, whose own embeddings task.name = 'embed' gives with"
            )
            what += " task.pooling = 'mean' or 'cls'"
    else:
        wanted, what = ("embed",), " without a classifier"
    misfit = f"task.name = '{deck.task.name}' does not fit {deck.model.path}: a {config.family} model{what}"
    require(deck.task.name in wanted, f"{misfit}; give {' or '.join(wanted)}")
    if deck.task.name == "rerank":
        require(
            config.scores != "other",
            f"{deck.model.path}: its scores are made by an activation that is not known here; task.name = 'classify'"
            " gives the logits",
        )
    prompt = deck.task.prompt
    require(not prompt or deck.task.name == "embed", f"task.prompt = {prompt!r} is for task.name = 'embed' only")


def _text_digest(model: Any) -> str:
    """sha256 of how the model's file turns text into tokens, of which its own digest says nothing."""
    known = model.preprocess or {}
    rules = {name: known.get(name) for name in ("max_tokens", "prompts", "split_special_tokens")}
    rules |= {name: known[name] for name in ("token_types",) if name in known}  # which earlier versions do not write
    told = json.dumps([model.tokenizer, rules, (model.preprocess or {}).get("default_prompt")], sort_keys=True)
    return hashlib.sha256(told.encode(errors="surrogatepass")).hexdigest()


class Embed:
    """One vector per item."""

    def __init__(self, deck: Deck, model: Any, comm: MPI.Comm, choices: Mapping[str, Any]) -> None:
        """On every rank. choices: those that an earlier part of this job made. InputError on what does not fit."""
        self.deck, self.model, self.comm = deck, model, comm
        is_text = any(kind.tokenizes for kind in kinds_of(deck.input.kind))
        #: what must be the same when a job goes on, beside the deck
        self.state: dict[str, Any] = {"text_digest": _text_digest(model)} if is_text else {}

    def open(self, open_source: Callable[..., Source] = open_input) -> Source:
        """The items, on rank 0."""
        model, prompt = self.model, self.deck.task.prompt
        more = {} if prompt is None else {"prompt": prompt}
        return open_source(self.deck.input, model.tokenizer, model.preprocess, model.config, **more)

    def about(self, source: Source, items: range) -> np.ndarray:
        """(B,) int64: what outputs need to know of these items beside the inputs, on rank 0; nothing: (0,)."""
        return np.empty(0, np.int64)

    def part(self, source: Source, items: range, numbers: range) -> Part:
        """Of items of the source, whose `numbers` are those of the whole input."""
        return Part(numbers, self.about(source, items))

    def outputs(self, inputs: np.ndarray, mask: np.ndarray | None, part: Part | None) -> Outputs:
        """Collective: what is kept of these items, (B, ..) each, on rank 0; the others have no `part`."""
        return {"embedding": self.model(inputs, mask)}

    #: whether it says itself how far it is
    talks = False


class Classify(Embed):
    """The logits of each item's classes, and their probabilities; an item is an image, a text, or two texts."""

    def __init__(self, deck: Deck, model: Any, comm: MPI.Comm, choices: Mapping[str, Any]) -> None:
        super().__init__(deck, model, comm, choices)
        self.how = getattr(model.config, "probabilities", "softmax")
        self.state |= {"labels": list(getattr(model.config, "labels", ())), "probabilities": self.how}

    def open(self, open_source: Callable[..., Source] = open_input) -> Source:
        model = self.model
        pairs = {"pairs": True} if getattr(model.config, "pairs", False) else {}
        return open_source(self.deck.input, model.tokenizer, model.preprocess, model.config, **pairs)

    def outputs(self, inputs: np.ndarray, mask: np.ndarray | None, part: Part | None) -> Outputs:
        logits = self.model(inputs, mask)
        kept = {"logits": logits, "class": logits.argmax(axis=1).astype(np.int32)}
        return kept if self.how == "none" else {**kept, "probabilities": probabilities(logits, self.how)}


class Rerank(Embed):
    """The score of each pair of texts; where it stands among those of its first text is known when all are scored."""

    def open(self, open_source: Callable[..., Source] = open_input) -> Source:
        model = self.model
        return open_source(self.deck.input, model.tokenizer, model.preprocess, model.config, pairs=True, ranked=True)

    def about(self, source: Source, items: range) -> np.ndarray:
        assert isinstance(source, TextSource | Excerpt)
        return source.queries(items)

    def outputs(self, inputs: np.ndarray, mask: np.ndarray | None, part: Part | None) -> Outputs:
        logits = self.model(inputs, mask)[:, 0]
        if part is None:
            return {}
        score = sigmoid(logits) if self.model.config.scores == "sigmoid" else logits
        return {"logits": logits, "score": score, "query": part.about}


def probabilities(logits: np.ndarray, how: str) -> np.ndarray:
    """(B, C) float32 of logits (B, C): "softmax" over the classes, or "sigmoid" of each."""
    if how == "sigmoid":
        return sigmoid(logits)
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float32, of the same shape."""
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)


class Perplexity(Embed):
    """How well each window of a text is predicted."""

    def open(self, open_source: Callable[..., Source] = open_input) -> Source:
        return open_windows(self.deck, self.model)

    def about(self, source: Source, items: range) -> np.ndarray:
        assert isinstance(source, WindowSource)
        return source.n_context[items.start : items.stop]

    def outputs(self, inputs: np.ndarray, mask: np.ndarray | None, part: Part | None) -> Outputs:
        return window_scores(self.model, self.comm, inputs, mask, None if part is None else part.about)


class Generate(Embed):
    """What follows each prompt."""

    def __init__(self, deck: Deck, model: Any, comm: MPI.Comm, choices: Mapping[str, Any]) -> None:
        super().__init__(deck, model, comm, choices)
        self.generator = generation.Generator(deck.task, model, deck.run.seed, choices.get("decode"))
        self.state |= {"stop_tokens": list(self.generator.stop)}
        if self.generator.stop_texts is not None:
            self.state |= {"stop_texts": list(self.generator.stop_texts.texts)}
        self.tokenizer = None if model.tokenizer is None else Tokenizer(model.tokenizer)
        wanted = deck.task.stream
        self.talks = self.tokenizer is not None and (
            sys.stderr.isatty() and deck.run.batch == 1 if wanted is None else wanted
        )
        require(not wanted or deck.run.batch == 1, "task.stream = true prints one text at a time; give run.batch = 1")
        require(
            not wanted or self.tokenizer is not None,
            f"task.stream = true needs a tokenizer, and {deck.model.path} holds none; convert a folder with one",
        )

    def open(self, open_source: Callable[..., Source] = open_input) -> Source:
        model, section = self.model, self.deck.input
        source = open_source(section, model.tokenizer, model.preprocess, model.config, prompts=True)
        return generation.PromptSource(source, str(section.path), model.config.max_positions)

    def outputs(self, inputs: np.ndarray, mask: np.ndarray | None, part: Part | None) -> Outputs:
        assert mask is not None
        numbers = broadcast_integers(self.comm, None if part is None else np.array(part.numbers), len(inputs))
        printer = None
        if self.talks and self.tokenizer is not None and part is not None:
            printer = generation.Printer(self.tokenizer, inputs[0][mask[0]])
        tokens = self.generator(inputs, mask, numbers.tolist(), printer)
        if printer is not None:
            printer.close()
        prompts = [row[keep] for row, keep in zip(inputs, mask, strict=True)]
        return generation.outputs(tokens, prompts, self.tokenizer) if part is not None else {}


TASKS: dict[str, type[Embed]] = {
    "embed": Embed,
    "classify": Classify,
    "rerank": Rerank,
    "perplexity": Perplexity,
    "generate": Generate,
}


def first_items(deck: Deck, model: Model) -> tuple[str, np.ndarray, np.ndarray | None]:
    """On one rank: in words, inputs and mask of some of the job's items, from its beginning to its end.

    InputError on what the model cannot take.
    """
    check_task(deck, model.config)
    source = TASKS[deck.task.name](deck, model, model.comm, {}).open()
    n = source.n_items
    return "items of the job", *source.batch(0, n, max(1, n // ITEMS))
