"""The models of a sweep: a preset's are made by `astra-mpi init` where they are missing; digests say what they are."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from astra_mpi import __version__
from astra_mpi.errors import AstraError
from astra_mpi.job.info import describe
from astra_mpi.measure.sweep.deck import SweepDeck
from astra_mpi.measure.sweep.points import Point
from astra_mpi.measure.sweep.process import run_program
from astra_mpi.ranks.signals import StopRequests


@dataclass(frozen=True)
class Prepared:
    """What a point is measured on, or why there is nothing to measure it on."""

    path: Path
    codebooks: Path | None = None
    digest: str = ""
    codec_digest: str = ""
    failure: str = ""

    def digests(self, point: Point) -> dict[str, str]:
        """Codebooks count only for strategies that use them."""
        return {"model": self.digest, "codebooks": self.codec_digest if point.codec else ""}


class Models:
    """Model and codebooks of every point. `made` files lie in `folder`, named by what they were made from."""

    def __init__(self, deck: SweepDeck, folder: Path, stop: StopRequests) -> None:
        self.deck, self.folder, self.stop = deck, folder, stop
        self._known: dict[tuple[str, int | None], Prepared] = {}

    def __call__(self, point: Point) -> Prepared:
        """Strategies without a codec run on the files of the first one."""
        codec = point.codec or next(iter(self.deck.codecs))
        given = self.deck.model.path is not None
        key = codec, None if given else point.tokens
        if key not in self._known:
            self._known[key] = self._prepare(*key)
        return self._known[key]

    def _prepare(self, codec: str, tokens: int | None) -> Prepared:
        model, codebooks = self.deck.model, self.deck.codecs[codec].codebooks
        path = model.path or self._made(codec, tokens)
        try:
            if model.path is None and not path.exists():
                self._make(path, codec, tokens)
            if self.stop.signum:
                return Prepared(path, failure="interrupted")
            facts = describe(path)
            coded = describe(codebooks) if codebooks else facts
            return Prepared(path, codebooks, facts["digest"], (coded["codec"] or {}).get("digest", ""))
        except AstraError as exc:
            return Prepared(path, failure=str(exc))

    def _made(self, codec: str, tokens: int | None) -> Path:
        model = self.deck.model
        options = self.deck.codecs[codec].options()
        told = json.dumps([model.preset, tokens, model.seed, options, __version__])
        name = "-".join(str(word) for word in (model.preset, tokens) if word is not None)
        return self.folder / f"{name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}.h5"

    def _make(self, path: Path, codec: str, tokens: int | None) -> None:
        model = self.deck.model
        print(f"making {path.name} ({codec})", file=sys.stderr, flush=True)
        given = [] if tokens is None else ["--tokens", str(tokens)]
        options = [*given, "--seed", str(model.seed), *self.deck.codecs[codec].options()]
        run_program([sys.executable, "-m", "astra_mpi", "init", str(model.preset), str(path), *options], self.stop)
