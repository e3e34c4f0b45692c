"""One step of training on the ranks of a communicator, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from astra_mpi.codec.codec import Codec
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.train import losses
from astra_mpi.train.augment import augmented
from astra_mpi.train.averages import Averages
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.codes.sender import Sender, sender_for
from astra_mpi.train.cuts import View, coded_places, draw_cut, make_view
from astra_mpi.train.data import Batch
from astra_mpi.train.deck import TrainDeck
from astra_mpi.train.optimise import Optimiser
from astra_mpi.train.parallel import add_numbers
from astra_mpi.train.twin import Twin

if TYPE_CHECKING:
    from mpi4py import MPI


class Trainer:
    """A twin that learns as the (resolved) deck says, from the codebooks of `codec`, if any.

    Products are in bfloat16 where `halves` is true.
    """

    def __init__(
        self, deck: TrainDeck, model: ModelFile, codec: Codec | None, comm: MPI.Comm, device: str, halves: bool
    ) -> None:
        self.deck, self.comm, self.halves = deck, comm, halves
        self.twin = Twin(model.config, model.weights, device)
        self.twin.recomputes = deck.train.recompute
        self.frozen = deck.train.learn == "codebooks"
        if self.frozen and halves:
            self.twin.halve()
        learns = deck.codec.update == "adam"
        self.codebooks = None
        if codec is not None:
            self.codebooks = Codebooks(codec, learns, device, deck.codec.first, deck.codec.codes == "late")
        self.teacher = None
        if deck.train.loss == "distill":
            self.teacher = self.twin if self.frozen else copy.deepcopy(self.twin)
        self.optimiser = Optimiser(self.twin, self.codebooks, deck.train, comm)
        single = deck.codec.class_token == "single"
        self.replicas = 1 if single else None
        self.sinks = self.twin.sinks(None if codec is None else codec.config)
        if self.codebooks is not None:
            settings = deck.codec.decay, deck.codec.revive or 0.0, bool(deck.codec.noise)
            self.averages = Averages(self.codebooks, comm, *settings)

    def step(self, step: int, batch: Batch) -> tuple[float, float]:
        """Collective: learn from this rank's part of a joint batch. -> (joint loss, norm of the joint gradient).

        Where one of them is not finite, nothing has changed.
        """
        train, device = self.deck.train, self.twin.device
        images = augmented(batch, train.augment, train.seed, step)
        inputs, keep = torch.from_numpy(images).to(device), torch.from_numpy(batch.keep).to(device)
        size, slices = draw_cut(train.ranks, train.cuts == "random", train.seed, step)
        view = make_view(
            batch.keep,
            self.twin.config.n_class,
            size,
            slices,
            causal=self.twin.causal,
            sends=self.codebooks is not None,
            replicas=self.replicas,
            sinks=self.sinks,
            device=device,
        )
        sender = self._sender(batch, step, view)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.halves):
            loss = self._loss_of(inputs, keep, batch, view, sender)
        if sender is not None and self.deck.codec.beta:
            loss = loss + self.deck.codec.beta * sender.commitment / batch.n_tokens
        joint = float(add_numbers(self.comm, [float(loss.detach())])[0])
        if not np.isfinite(joint):
            return joint, float("nan")
        loss.backward()
        norm = self.optimiser.step(step)
        if self.codebooks is not None and np.isfinite(norm):
            self.codebooks.settle()
        if sender is not None and sender.observes and np.isfinite(norm):
            self.optimiser.forget(self.averages.update(sender.uses, train.seed, step, late=step >= 0.75 * train.steps))
        return joint, norm

    def _sender(self, batch: Batch, step: int, view: View) -> Sender | None:
        if self.codebooks is None:
            return None
        coded = coded_places(batch.keep, self.twin.config.n_class, self.sinks)
        rng = np.random.default_rng([self.deck.train.seed, 6, step])
        parts = len(self.codebooks.blocks[0])
        seeds = rng.integers(2**62, size=(len(self.codebooks.blocks), parts, batch.n_items))[:, :, batch.places]
        noise, observes = self.deck.codec.noise or 0.0, self.averages.needed
        return sender_for(self.codebooks, view, coded, self.twin.causal, seeds=seeds, noise=noise, observes=observes)

    def _loss_of(self, inputs: Tensor, keep: Tensor, batch: Batch, view: View, sender: Sender | None) -> Tensor:
        """This rank's share of the loss. A decoder whose head does not learn never has all of its logits."""
        twin, site = self.twin, self.codebooks.config.site if self.codebooks else "hidden"
        if self.teacher is None or not (self.frozen and twin.causal):
            found = twin(inputs, view, sender, site)
            exact = None
            if self.teacher is not None:
                with torch.no_grad():
                    exact = self.teacher(inputs, self._whole(batch))
            return self._loss(found, exact, inputs, keep, batch)
        with torch.no_grad():
            wanted = twin.rows(inputs, self._whole(batch))[keep]
        rows = twin.rows(inputs, view, sender, site)[keep]
        return losses.same_distribution_by_rows(rows, wanted, twin.logits, batch.n_tokens, twin.config.vocab_size)

    def _whole(self, batch: Batch) -> View:
        """One rank."""
        return make_view(
            batch.keep,
            self.twin.config.n_class,
            1,
            None,
            causal=self.twin.causal,
            sends=False,
            device=self.twin.device,
        )

    def _loss(self, found: Tensor, exact: Tensor | None, inputs: Tensor, keep: Tensor, batch: Batch) -> Tensor:
        train, config = self.deck.train, self.twin.config
        if exact is not None and isinstance(config, BertConfig) and not config.n_classes:
            return losses.same_embedding(self.comm, found, exact, train.similarity, batch.n_items)
        if exact is not None:
            n_rows = batch.n_tokens if self.twin.causal else batch.n_items
            return losses.same_distribution(losses.token_rows(found, keep), losses.token_rows(exact, keep), n_rows)
        if self.twin.causal:
            return losses.next_token(found, inputs, keep, batch.n_tokens - batch.n_items, train.smoothing)
        assert batch.labels is not None
        labels = torch.from_numpy(batch.labels).to(found.device)
        return losses.classification(found, labels, train.smoothing, batch.n_items)

    def state(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        weights = {f"weights.{name}": t for name, t in self.optimiser.named.items() if name in self.twin.w}
        return weights | (self.codebooks.state() if self.codebooks else {}) | self.optimiser.state()

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        own = {
            name: t for name, t in self.state().items() if name.startswith(("weights.", "codebooks.", "predictors."))
        }
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.optimiser.restore(state)
