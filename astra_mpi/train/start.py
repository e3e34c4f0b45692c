"""Where a training run starts: model, data, codebooks, device."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_features

from astra_mpi.calibrate import fit_codec, too_few
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require
from astra_mpi.errors import InputError, collective
from astra_mpi.files import codecfile, modelfile
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.models import FAMILIES
from astra_mpi.ranks.broadcast import broadcast_text
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.data import Items, Order, hold_out, open_items
from astra_mpi.train.deck import TrainDeck, check_start
from astra_mpi.train.parallel import add_numbers
from astra_mpi.train.shape import new_model

if TYPE_CHECKING:
    from mpi4py import MPI

#: items per forward pass of the exact model before k-means
BATCH = 16


def starting_model(deck: TrainDeck) -> ModelFile:
    if deck.model.path is None:
        return new_model(deck.shape, deck.data, deck.train.seed)
    model = modelfile.read_model(deck.model.path)
    if deck.model.codebooks is not None:
        codec = codecfile.read_codebooks(deck.model.codebooks, model.digest)
        codecfile.check_codec(codec, model.config, deck.model.codebooks)
        model = replace(model, codec=codec)
    return model


def open_data(deck: TrainDeck, model: ModelFile) -> tuple[Items, Items, Order, np.ndarray]:
    """-> training items, validation items, the order of the former, which of the latter are measured."""
    data, train = deck.data, deck.train
    need = train.loss == "labels" and getattr(model.config, "n_classes", 0) > 0
    items = open_items(data, data.train, model, need)
    learned, chosen = np.arange(len(items)), np.arange(0)
    if data.valid is None:
        valid = items
        learned, chosen = hold_out(len(items), data.holdout, train.seed)
    else:
        valid = open_items(data, data.valid, model, need)
        chosen = np.arange(len(valid))
    if train.eval_items is not None and train.eval_items < len(chosen):
        chosen = np.sort(np.random.default_rng([train.seed, 8]).permutation(chosen)[: train.eval_items])
    return items, valid, Order(learned, items.lengths, train.batch, train.seed), chosen


def device(wanted: str, comm: MPI.Comm) -> str:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise InputError('train.device = "cuda", but PyTorch finds no GPU here; give "cpu"')
    return f"cuda:{comm.Get_rank() % torch.cuda.device_count()}"


def halves(wanted: str, device: str, comm: MPI.Comm) -> bool:
    """Collective: whether products are in bfloat16; "auto": if every rank's device has instructions for them.

    Where a CPU has none, they take many times as long as in float32: rank 0 says so.
    """
    if wanted == "float32":
        return False
    able = int(add_numbers(comm, [float(has_bfloat16(device))])[0]) == comm.Get_size()
    if wanted == "bfloat16" and not able and comm.Get_rank() == 0:
        print(
            'warning: train.precision = "bfloat16", but a device here has no instructions for it: it may take ten '
            'times as long as with "float32"; "auto" chooses',
            file=sys.stderr,
        )
    return wanted == "bfloat16" or able


def has_bfloat16(device: str) -> bool:
    if device != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    features = get_host_cpu_features()
    return any(features.get(name, False) for name in ("avx512bf16", "amx-bf16", "bf16"))


def starting_codec(
    deck: TrainDeck,
    model: ModelFile,
    items: Items,
    learned: np.ndarray,
    state: dict[str, torch.Tensor],
    comm: MPI.Comm,
    threads: int,
) -> Codec | None:
    """Collective: the codebooks of a checkpoint's `state`, of the model, or from k-means; None: none."""
    section = deck.codec
    if section.is_exact:
        return None
    if section.init == "model":
        with collective(comm):
            require(model.codec is not None, f'{deck.model.path} has no codebooks; use codec.init = "kmeans"')
            if model.codec is not None:
                check_start(deck, model.codec.config)
        return model.codec
    config = section.config(FAMILIES[model.config.family].default_site)
    width = model.config.d_kv if config.site == "kv" else model.config.d_model
    if state:
        return Codebooks.codec_of(state, config, width)
    order = np.random.default_rng([deck.train.seed, 7]).permutation(learned)
    chunks = (items.part(order[a : a + BATCH]) for a in range(0, len(order), BATCH))
    codec = fit_codec(
        model,
        ((b.inputs, None if model.config.family == "vit" else b.keep) for b in chunks),
        config,
        comm=comm,
        seed=deck.train.seed,
        n_samples=section.samples,
        threads=threads,
        metric=section.metric,
        on_tokens=lambda n: _warn_of(n, section.samples, config.codebook_size, comm),
    )
    return _same_everywhere(codec, comm)


def _warn_of(n_tokens: int, wanted: int, n_entries: int, comm: MPI.Comm) -> None:
    text = too_few(n_tokens, wanted, n_entries, "data.train", "codec.samples")
    if text and comm.Get_rank() == 0:
        print(f"astra-mpi: warning: starting codebooks: {text}", file=sys.stderr, flush=True)


def _same_everywhere(codec: Codec | None, comm: MPI.Comm) -> Codec:
    """Collective: rank 0's codec on every rank."""
    if comm.Get_size() == 1:
        assert codec is not None
        return codec
    facts = "" if codec is None else json.dumps([codec.config.as_dict(), [_outline(b) for b in codec.blocks]])
    config, outlines = json.loads(broadcast_text(comm, facts))
    blocks = []
    for i, outline in enumerate(outlines):
        books = []
        for p, (kind, shape, width, columns) in enumerate(outline):
            mine = None if codec is None else codec.blocks[i].codebooks[p]
            entries = np.empty(shape, np.float32) if mine is None else mine.entries
            basis = np.empty((width, columns), np.float32) if mine is None or mine.basis is None else mine.basis
            comm.Bcast(entries)
            comm.Bcast(basis)
            books.append(Codebook(kind, entries, width, basis if columns else None))
        blocks.append(BlockCodec(tuple(books)))
    return Codec(CodecConfig(**config), tuple(blocks))


def _outline(block: BlockCodec) -> list[tuple[str, tuple[int, ...], int, int]]:
    """Per codebook: kind, shape of its entries, width, columns of its basis."""
    return [(b.kind, b.entries.shape, b.width, 0 if b.basis is None else b.basis.shape[1]) for b in block.codebooks]
