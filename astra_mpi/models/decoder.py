"""What decoders share: token ids in, logits of the next token out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from astra_mpi.checkpoint.config import HFConfig, shown
from astra_mpi.checkpoint.tensors import Tensors, equal
from astra_mpi.config import OPTIONAL, ModelConfig, require
from astra_mpi.device.packed import Packed, pack, packs
from astra_mpi.device.weights import Matrix, product_transposed
from astra_mpi.device.xp import module_of, take, to_host
from astra_mpi.errors import InputError
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch, pack_ids
from astra_mpi.models.family import Family
from astra_mpi.models.recipe import Shapes

#: logits computed at a time where those of all tokens are needed: 32 MiB of float64
_LOGITS = 1 << 22


@dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """`ModelConfig` plus what a language model needs."""

    vocab_size: int
    max_positions: int  # longest sequence
    tied: bool = True  # the head is the word embedding, else a layer of its own
    logit_cap: float = field(default=0.0, kw_only=True, metadata=OPTIONAL)  # logits z become cap tanh(z / cap); 0: stay

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vocab_size", "max_positions"):
            value = getattr(self, name)
            require(isinstance(value, int) and value >= 1, f"config: {name} = {value!r} must be a positive integer")
        require(isinstance(self.tied, bool), f"config: tied = {self.tied!r} must be true or false")
        require(0 <= self.logit_cap < math.inf, f"config: logit_cap = {self.logit_cap!r} must be 0 or more")

    @property
    def n_class(self) -> int:
        return 0


class Decoder(Family):
    """Logits (B, V) of each sequence's last token; those of all tokens on demand."""

    config: DecoderConfig
    causal = True

    @property
    def head_weights(self) -> tuple[str, ...]:
        return ("embed.word",) if self.config.tied else super().head_weights

    def make_ready(self) -> None:
        super().make_ready()
        if self.config.tied and "embed.word" in self.w:
            self.word_head  # noqa: B018 - packed now

    @cached_property
    def word_head(self) -> Packed | None:
        """(D, V): the word embedding as a packed head, where it can be; its rows are read as they are stored."""
        word = self.w["embed.word"]
        return pack([word], self.kernels, self.memory, transposed=True) if packs(word, self.kernels) else None

    @property
    def nbytes(self) -> int:
        head = self.word_head if self.config.tied and "embed.word" in self.w else None
        return super().nbytes + (0 if head is None else head.nbytes)

    def prepare(self, inputs: np.ndarray, mask: np.ndarray | None = None) -> Batch:
        """Token ids (B, T) and mask (B, T), 0 = drop -> packed batch. InputError on ids out of range or too long."""
        return pack_ids(inputs, mask, self.config.vocab_size, self.config.max_positions, 0)

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank."""
        raise NotImplementedError

    def tokens_here(self, batch: Batch, layout: Layout) -> np.ndarray:
        """(n,) index into the packed batch of each row of this rank."""
        starts = np.concatenate([[0], np.cumsum(batch.lengths)[:-1]])
        return starts[layout.row_sequence] + layout.row_token

    def pool(self, x: np.ndarray, layout: Layout) -> np.ndarray:
        """Rows (n, D) -> this rank's share (B, D): rows of the last tokens that are here, 0 elsewhere.

        Rows travel, not logits: V is tens of times D, and a slow link takes longer for the difference than a rank for
        the head.
        """
        share = np.zeros((len(layout.counts), self.config.d_model), np.float32)
        sequences, rows = layout.last_rows
        if len(rows):
            share[sequences] = to_host(take(x, rows))
        return share

    def nll(self, x: np.ndarray, layout: Layout, batch: Batch, n_context: np.ndarray) -> np.ndarray:
        """Rows (n, D) -> this rank's share (B, 2): summed negative log-likelihood (nats) of the tokens that its rows
        predict, and their number. A sequence's first n_context (B,) tokens do not count, nor does its very first one.
        """
        xp, share = module_of(x), np.zeros((len(batch.lengths), 2))
        sequence, target = layout.row_sequence, layout.row_token + 1
        counts = (target < batch.lengths[sequence]) & (target >= n_context[sequence])
        counts[layout.replica_rows] = False
        rows = np.flatnonzero(counts)
        places = self.tokens_here(batch, layout) + 1
        for part in np.array_split(rows, -(-len(rows) * self.config.vocab_size // _LOGITS) or 1):
            if len(part):
                logits = self.final(take(x, part)).astype(np.float64)
                highest = logits.max(axis=1)
                log_sum = highest + xp.log(xp.exp(logits - highest[:, None]).sum(axis=1))
                lost = log_sum - logits[xp.arange(len(part)), xp.asarray(batch.values[places[part]])]
                np.add.at(share, sequence[part], np.stack([to_host(lost), np.ones(len(part))], axis=1))
        return share.astype(np.float32)

    def final(self, x: np.ndarray) -> np.ndarray:
        """Rows after the last block (n, D) -> logits (n, V)."""
        normed = self.norm(x)
        head = self.word_head if self.config.tied else None
        if head is not None:
            return self.capped(head.layer(normed, np.empty((len(normed), head.shape[1]), np.float32)))
        if self.config.tied:
            return self.capped(product_transposed(normed, self.w["embed.word"], self.kernels, self.scratch))
        return self.capped(self.product(normed, "head.weight"))

    def capped(self, logits: np.ndarray) -> np.ndarray:
        """What the head gives (n, V) -> logits."""
        cap = self.config.logit_cap
        return logits if not cap else module_of(logits).tanh(logits / logits.dtype.type(cap)) * logits.dtype.type(cap)

    @property
    def head_matrix(self) -> tuple[Matrix, bool]:
        """What makes logits of rows behind the last norm, (D, V), or, if that is True, (V, D)."""
        if not self.config.tied:
            return self._layer("head.weight"), False
        return (self.w["embed.word"], True) if self.word_head is None else (self.word_head, False)

    def norm(self, x: np.ndarray) -> np.ndarray:
        """The norm after the last block, (n, D) -> (n, D)."""
        weight, eps = self.w["norm.weight"], self.config.norm_eps
        if self.recipe.rms:
            return self.kernels.rms_norm(x, weight, eps)
        return self.kernels.layer_norm(x, weight, self.w["norm.bias"], eps)

    def head(self, pooled: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Shares summed over ranks (B, D), the last rows -> logits (B, V); a sequence without tokens has zeros."""
        logits = np.zeros((len(lengths), self.config.vocab_size), np.float32)
        rows = np.flatnonzero(lengths > 0)
        if len(rows):
            logits[rows] = to_host(self.final(take(pooled, rows)))
        return logits


def embedding_shapes(config: DecoderConfig) -> Shapes:
    """Word embedding and head."""
    shapes: Shapes = {"embed.word": (config.vocab_size, config.d_model)}
    if not config.tied:
        shapes["head.weight"] = (config.d_model, config.vocab_size)
    return shapes


def causal_layers(hf: HFConfig, key: str) -> int:
    """Number of blocks. InputError if one of them sees other tokens than all before it."""
    n_layers = hf.integer(key)
    kinds = hf.get("layer_types")
    full = isinstance(kinds, list) and len(kinds) == n_layers and all(kind == "full_attention" for kind in kinds)
    require(
        kinds is None or full, f"layer_types = {shown(kinds)} is not supported; only full_attention in all blocks is"
    )
    return n_layers


def tied_head(hf: HFConfig, tensors: Tensors, word: str, head: str = "lm_head.weight") -> bool:
    """Whether the head is the word embedding, as transformers decides it: config.json says so and the checkpoint does
    not have two that differ. One that is alone then stands for both.

    InputError where there is no head at all.
    """
    found_word, found_head = tensors.find(word), tensors.find(head)
    if not hf.flag("tie_word_embeddings"):
        if found_head is None:
            raise InputError(
                f"there is no tensor {head}, and tie_word_embeddings is false: this is a base model without a head;"
                " give the checkpoint of the language model, or set tie_word_embeddings to true if its head is the word"
                " embedding"
            )
        return False
    if found_word is None and found_head is not None:
        tensors.use(word, instead=head)
    if found_word is None or found_head is None or equal(found_word, found_head):
        return True
    hf.notes.append(f"tie_word_embeddings is true, but {head} is not the word embedding; it was kept as the head")
    return False
