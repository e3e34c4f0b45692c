"""What a text encoder of the BERT kind is: its sizes, its pooling, its classifier."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from astra_mpi.config import ModelConfig, optional, require
from astra_mpi.models.classes import PROBABILITIES, SCORES

#: distance from which on all tokens have the same bias
FURTHEST = 128
POOLINGS = ("mean", "cls", "pooler", "last")
POOLERS = ("tanh", "relu", "gelu", "silu", "gelu_tanh")
#: after layers that an embedding goes through
DENSE = ("tanh", "relu", "gelu", "silu", "identity")
#: what the dense layer of a pooler takes: the first token, the mean over tokens, or each token before their mean
POOLED = ("cls", "mean", "each")


@dataclass(frozen=True)
class BertConfig(ModelConfig):
    """`ModelConfig` plus what a text encoder needs."""

    vocab_size: int
    max_positions: int  # longest sequence
    type_vocab: int = 2  # types of tokens, those of a pair's second text being 1; 0: the model has none
    pooling: str = "mean"  # mean over content tokens, first token, last token, or a dense layer over the first token
    normalize: bool = False  # scale embeddings to length 1
    embedding_size: int = optional(0)  # numbers kept of an embedding, after that; 0: all
    has_pooler: bool = False  # the checkpoint has the dense layer
    pooler_activation: str = optional("tanh")  # after it
    pooler_over: str = optional("cls")  # what it takes, see POOLED
    pooler_norm: bool = optional(False)  # and after it, a LayerNorm
    pad_token: int = optional(-1)  # positions count tokens other than this one, from 1 on; -1: all, from 0
    relative_buckets: int = optional(0)  # scores have biases by distance, in so many buckets; 0: none
    word_width: int = optional(0)  # of embeddings that a layer brings to d_model; 0: they have that width
    n_classes: int = optional(0)  # a classifier over the pooled token; 0: the answer is an embedding
    labels: tuple[str, ...] = optional(())  # names of the classes
    dense_widths: tuple[int, ...] = optional(())  # of layers that an embedding goes through after pooling
    dense_activations: tuple[str, ...] = optional(())  # after each of them, see DENSE
    probabilities: str = optional(
        "softmax"
    )  # what makes probabilities of logits: "softmax", "sigmoid" (of each), "none"
    scores: str = optional(
        "sigmoid"
    )  # what makes the score of a pair of one logit: "sigmoid", "identity", "other" (unknown)

    family: ClassVar[str] = "bert"

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {
            "vocab_size": 1,
            "max_positions": 1,
            "type_vocab": 0,
            "pad_token": -1,
            "word_width": 0,
            "n_classes": 0,
            "relative_buckets": 0,
        }
        for name, smallest in least.items():
            value = getattr(self, name)
            good = type(value) is int and value >= smallest
            require(good, f"config: {name} = {value!r} must be an integer >= {smallest}")
        require(
            self.pooling in POOLINGS, f"config: pooling '{self.pooling}' is unknown; use one of {', '.join(POOLINGS)}"
        )
        require(
            self.pooling != "pooler" or self.has_pooler,
            "config: pooling 'pooler' needs a checkpoint with pooler weights",
        )
        size = self.embedding_size
        good = type(size) is int and 0 <= size < self.width
        require(good, f"config: embedding_size = {size!r} is outside 0..{self.width - 1}")
        good = all(type(n) is int and n > 0 for n in self.dense_widths) and set(self.dense_activations) <= set(DENSE)
        good = good and len(self.dense_widths) == len(self.dense_activations)
        require(good, f"config: dense layers of widths {self.dense_widths} with {self.dense_activations}")
        self._check_classes()

    def _check_classes(self) -> None:
        for name, known in (
            ("pooler_activation", POOLERS),
            ("pooler_over", POOLED),
            ("probabilities", PROBABILITIES),
            ("scores", SCORES),
        ):
            value = getattr(self, name)
            require(value in known, f"config: {name} = {value!r} is unknown; use one of {', '.join(known)}")
        require(
            len(self.labels) in (0, self.n_classes) and all(isinstance(label, str) for label in self.labels),
            f"config: labels = {self.labels!r} are not names of {self.n_classes} classes",
        )
        plain = self.pooling == "pooler" and not self.normalize and not self.embedding_size
        require(not self.n_classes or plain, "config: a classifier takes what the pooler makes, as it is")

    @property
    def width(self) -> int:
        """Of an embedding, before it is cut to `embedding_size`."""
        return self.dense_widths[-1] if self.dense_widths else self.d_model

    def for_embeddings(self, pooling: str) -> BertConfig:
        """Of the same encoder without its classifier."""
        return replace(self, n_classes=0, labels=(), probabilities="softmax", scores="sigmoid", pooling=pooling)

    @property
    def pairs(self) -> bool:
        """Whether its answer is about a text, or about two."""
        return self.n_classes > 0

    @property
    def position_rows(self) -> int:
        """Rows of the position embedding: one more where the token that is not counted has one."""
        return self.max_positions + (self.pad_token >= 0)

    @property
    def n_class(self) -> int:
        """A pooled first token is replicated on every rank; otherwise it is an ordinary content token."""
        return int(self.pooling == "cls" or (self.pooling == "pooler" and self.pooler_over == "cls"))
