"""How far the job is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

LINE_EVERY_S = 5.0


class Progress:
    """Counts finished items, `n_done` of `n_items` at the start. One rank has one; the others have none.

    `unit`: what an item is called.
    """

    def __init__(self, n_items: int, n_done: int = 0, stream: TextIO | None = None, unit: str = "item") -> None:
        self.stream = sys.stderr if stream is None else stream
        self.unit = unit
        self.n_items, self.n_done, self.n_first = n_items, n_done, n_done
        self.start_s = self.last_s = time.monotonic()
        self.bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=n_items, initial=n_done, unit=unit, file=self.stream)

    def advance(self, n: int) -> None:
        """`n` more items are finished."""
        self.n_done += n
        if self.bar is not None:
            self.bar.update(n)
            return
        now_s = time.monotonic()
        if now_s - self.last_s >= LINE_EVERY_S or self.n_done == self.n_items:
            self.last_s = now_s
            rate = (self.n_done - self.n_first) / max(now_s - self.start_s, 1e-9)
            left = f"{(self.n_items - self.n_done) / rate:.0f} s left" if rate else "time left unknown"
            speed = f"{rate:.1f}/s, " if rate >= 1 else ""
            print(f"{self.n_done}/{self.n_items} {self.unit}s, {speed}{left}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
