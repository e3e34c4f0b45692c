"""How far a sweep is: a bar on a terminal, a line per point elsewhere, both with the time left."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class SweepProgress:
    """Points differ in cost: the time left is estimated from their `weights`, in any unit."""

    def __init__(self, weights: list[float], n_points: int, stream: TextIO | None = None) -> None:
        """weights: of the points still to be measured, of `n_points` in all."""
        self.stream = sys.stderr if stream is None else stream
        self.weights, self.n_points = weights, n_points
        self.n_done = 0
        self.start_s = time.monotonic()
        self.bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            form = "{n_fmt}/{total_fmt} points |{bar}| {elapsed}, {postfix}"
            done = n_points - len(weights)
            self.bar = tqdm(
                total=n_points, initial=done, bar_format=form, postfix="time left unknown", file=self.stream
            )

    def done(self, text: str) -> None:
        """One more point is finished; `text` says what came out."""
        self.n_done += 1
        done, left = sum(self.weights[: self.n_done]), sum(self.weights[self.n_done :])
        told = f"{in_words((time.monotonic() - self.start_s) * left / done)} left"
        if self.bar is not None:
            self.bar.set_postfix_str(told, refresh=False)
            self.bar.update(1)
            self.bar.write(text, file=self.stream)
            return
        number = self.n_points - len(self.weights) + self.n_done
        print(f"{number}/{self.n_points} points, {told}: {text}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def in_words(seconds: float) -> str:
    """45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
