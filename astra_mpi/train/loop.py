"""`astra-mpi train`: from a deck to a trained model or codebook file."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from astra_mpi.errors import AstraError, collective
from astra_mpi.files import codecfile, modelfile
from astra_mpi.files.provenance import provenance
from astra_mpi.models import FAMILIES
from astra_mpi.ranks.signals import Interrupted, StopRequests
from astra_mpi.train import checkpoint
from astra_mpi.train.deck import TrainDeck, resolved
from astra_mpi.train.evaluate import evaluate
from astra_mpi.train.log import Log
from astra_mpi.train.losses import metric_for
from astra_mpi.train.start import device, halves, open_data, starting_codec, starting_model
from astra_mpi.train.trainer import Trainer

if TYPE_CHECKING:
    from mpi4py import MPI


class Run:
    """A deck at work on the ranks of a communicator. Every rank reads the data; rank 0 writes."""

    def __init__(self, deck: TrainDeck, comm: MPI.Comm, threads: int, name: str) -> None:
        self.comm, self.name, self.on_root = comm, name, comm.Get_rank() == 0
        torch.set_num_threads(threads)
        with collective(comm):
            self.model = starting_model(deck)
            self.deck = deck = resolved(deck, self.model.config.family)
            self.items, self.valid, self.order, self.chosen = open_data(deck, self.model)
            self.device = device(deck.train.device, comm)
            path = deck.beside(".checkpoint.h5")
            digest = self.model.digest or str(self.model.config.as_dict())
            self.digest = deck.digest(digest, self.items.digest, self.valid.digest)
            found = deck.train.resume and path.exists()
            self.first, self.before = 0, (0.0, 0.0)
            state: dict[str, torch.Tensor] = {}
            if found:
                self.first, *before, state = checkpoint.load(path, self.digest)
                self.before = before[0], before[1]
        codec = starting_codec(deck, self.model, self.items, self.order.items, state, comm, threads)
        self.halves = halves(deck.train.precision, self.device, comm)
        self.trainer = Trainer(deck, self.model, codec, comm, self.device, self.halves)
        if found:
            self.trainer.restore(state)
        self.metric = metric_for(FAMILIES[self.model.config.family], self.valid.labels is not None)
        self.start_s, self.start_cpu_s = time.monotonic(), time.process_time()

    def __call__(self) -> dict[str, float]:
        """Collective: train to the end; -> the last validation figures."""
        train = self.deck.train
        log = None
        with collective(self.comm):
            if self.on_root:
                names = self.deck.beside(".jsonl"), self.deck.beside(".png")
                log = Log(*names, self.first, train.steps, self.metric.name, self.metric.grows)
        figures: dict[str, float] = {}
        if self.first == 0:
            figures = self._evaluate(0, log)
        with StopRequests() as stop:
            for step in range(self.first, train.steps):
                self._step(step, log)
                done = step + 1
                last, asked = done == train.steps, stop.agreed(self.comm)
                if done % train.eval_every == 0 or last:
                    figures = self._evaluate(done, log)
                if done % train.checkpoint_every == 0 or last or asked:
                    self._save(done)
                if asked and not last:
                    raise Interrupted(f"stopped after step {done}; the same command goes on from there", asked)
        if log is not None and (worsened := log.worsened()):
            print(f"astra-mpi: warning: {worsened}", file=sys.stderr, flush=True)
        return figures

    def _step(self, step: int, log: Log | None) -> None:
        """Collective."""
        batch = self.items.part(self.order.joint(step), self.comm.Get_rank(), self.comm.Get_size())
        loss, norm = self.trainer.step(step, batch)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            path = self.deck.beside(".checkpoint.h5")
            kept = f"the state of an earlier step is in {path}" if path.exists() else "nothing was saved yet"
            error = AstraError(
                f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}; lower train.lr or train.codebook_lr ({kept})"
            )
            error.collective = True
            raise error
        done = step + 1
        if done % self.deck.train.log_every == 0 or done == 1:
            with collective(self.comm):
                if log is not None:
                    log.write({"step": done, "loss": loss, "gradient": norm, "wall_s": self.times[0]})

    def _evaluate(self, done: int, log: Log | None) -> dict[str, float]:
        """Collective."""
        train, trainer = self.deck.train, self.trainer
        figures = evaluate(
            trainer.twin,
            trainer.codebooks,
            self.valid,
            self.chosen,
            self.metric,
            self.comm,
            train.eval_ranks,
            teacher=trainer.teacher,
            replicas=trainer.replicas,
        )
        with collective(self.comm):
            if log is not None:
                log.write({"step": done, **figures, "wall_s": self.times[0]}, aloud=True)
                log.draw()
        return figures

    @property
    def times(self) -> tuple[float, float]:
        """Wall and CPU seconds of this rank, earlier parts of the run included."""
        wall_s = self.before[0] + time.monotonic() - self.start_s
        return wall_s, self.before[1] + time.process_time() - self.start_cpu_s

    def _save(self, done: int) -> None:
        """Collective: the checkpoint, and the output as it is now."""
        with collective(self.comm):
            if self.on_root:
                path = self.deck.beside(".checkpoint.h5")
                checkpoint.save(path, self.digest, done, *self.times, self.trainer.state())
                self._write(done)

    def _write(self, done: int) -> None:
        deck, trainer = self.deck, self.trainer
        codec = None if trainer.codebooks is None else trainer.codebooks.codec
        wall_s, cpu_s = self.times
        facts = {
            "source": deck.data.train.name,
            "steps": f"{done} of {deck.train.steps}",
            "wall_s": f"{wall_s:.0f}",
            "core_hours": f"{cpu_s * self.comm.Get_size() / 3600:.2f}",
            "precision": "bfloat16" if self.halves else "float32",
        }
        made = provenance(f"train {self.name}", **facts)
        if deck.output.codebooks_only:
            assert codec is not None
            codecfile.write_codebooks(deck.output.path, codec, self.model.digest, made, deck.output.dtype)
            return
        weights = {name: tensor.detach().cpu().numpy() for name, tensor in trainer.twin.w.items()}
        same = {f"train_{key}": value for key, value in made.items()}
        kept = made if deck.model.path is None else self.model.provenance | same
        changed = replace(self.model, weights=weights, codec=codec, provenance=kept)
        dtype = deck.output.dtype
        modelfile.write_model(deck.output.path, replace(changed, stored_dtype=dtype, codec_dtype=dtype, keeps=False))
