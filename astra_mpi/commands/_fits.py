"""What `calibrate` fits: codebooks, and before them the stages of every block and what errors change in answers."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.calibrate import fit_codec, shared, shuffled_batches, too_few
from astra_mpi.calibrate.allotting import SHARE, allotted, as_counts, as_rows, mean_stages
from astra_mpi.codec.counts import as_text
from astra_mpi.errors import collective
from astra_mpi.job.progress import Progress
from astra_mpi.ranks.broadcast import broadcast_integers
from astra_mpi.ranks.watched import alone

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.codec.codec import Codec
    from astra_mpi.codec.config import CodecConfig
    from astra_mpi.codec.metric import Weighings
    from astra_mpi.files.modelfile import ModelFile
    from astra_mpi.inputs.sources import Source


class Fits:
    """Of one command and model. Rank 0 alone has the source."""

    def __init__(
        self, args: argparse.Namespace, comm: MPI.Comm, model: ModelFile, source: Source | None, threads: int
    ) -> None:
        self.args, self.comm, self.model, self.source, self.threads = args, comm, model, source, threads
        self._weighings: Weighings | None = None

    def codec(
        self, config: CodecConfig, *, embedded: bool = False, kept: Codec | None = None, n_awaited: int | None = 0
    ) -> Codec | None:
        """Collective: the codebooks, on rank 0. embedded: those that `allotted` measures; kept: those that stay."""
        args, comm = self.args, self.comm
        bars: list[Progress] = []  # rank 0's, which begins when all is read

        def begin(n_tokens: int) -> None:
            if comm.Get_rank() == 0:
                if not embedded:
                    _warn(too_few(n_tokens, args.samples, config.codebook_size, str(args.data), "--samples"))
                bars.append(Progress(self.model.config.n_layers, unit="block"))

        codec = fit_codec(
            self.model,
            shared(comm, None if self.source is None else shuffled_batches(self.source, args.seed)),
            config,
            comm=comm,
            seed=args.seed,
            n_samples=-(-args.samples // SHARE) if embedded else args.samples,
            threads=self.threads,
            metric=args.metric,
            weigh=self.weigh,
            find_sinks=args.sinks == "auto" and kept is None,
            progress=lambda done, total: bars[0].reach(done),
            on_tokens=begin,
            rank=args.predict_rank,
            embedded=embedded,
            codebooks=kept,
            n_awaited=n_awaited,
        )
        for bar in bars:
            bar.close()
        return codec

    def allotted(self, config: CodecConfig) -> CodecConfig:
        """Collective: the config with stages for every block, --bits on average. Rank 0 measures what they change."""
        args, n_layers = self.args, self.model.config.n_layers
        many = replace(config, stages=mean_stages(config, args.bits, n_layers), near=0, near_stages=0)
        codec = self.codec(many, embedded=True)
        rows: np.ndarray | None = None
        with collective(self.comm), alone(self.comm, "measuring what stages change"):
            if codec is not None and self.source is not None:
                bar = Progress(1, unit="measurement")
                batches = shuffled_batches(self.source, args.seed + 1)
                found = allotted(self.model, codec, batches, args.bits, lambda done, total: bar.reach(done / total))
                rows = as_rows(found, many)
                bar.close()
                print(f"stages of blocks: {as_text(as_counts(rows))}", flush=True)
        flat = None if rows is None else rows.ravel()
        everywhere = broadcast_integers(self.comm, flat, n_layers * config.n_books)
        return replace(config, stages=as_counts(everywhere.reshape(n_layers, config.n_books)))

    def weigh(self, config: CodecConfig) -> Weighings:
        """What errors change in the model's answer, measured once, on the rank that has the source."""
        if self._weighings is None:
            self._weighings = self._measured(config)
        return self._weighings

    def _measured(self, config: CodecConfig) -> Weighings:
        from astra_mpi.train.sensitivity import weighings

        assert self.source is not None
        seed, bar = self.args.seed, Progress(1, unit="measurement")
        batches = shuffled_batches(self.source, seed + 2)
        found = weighings(self.model, batches, config.site, config.sinks, seed, lambda done, n: bar.reach(done / n))
        bar.close()
        return found


def _warn(text: str) -> None:
    if text:
        print(f"astra-mpi: warning: {text}", file=sys.stderr, flush=True)
