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
        self.n_items, self.n_first = n_items, n_done
        self.n_done: float = n_done  # parts of an item count where they are told
        self.start_s = self.last_s = time.monotonic()
        self.bar = None
        if self.stream.isatty():
            from tqdm import tqdm

            # tqdm writes numbers as they are given it, parts of an item with all their digits
            shown = "{l_bar}{bar}| {n:.4g}/{total} {unit}s [{elapsed}<{remaining}, {rate_fmt}]"
            self.bar = tqdm(total=n_items, initial=n_done, unit=unit, file=self.stream, bar_format=shown)

    def advance(self, n: int) -> None:
        """`n` more items are finished."""
        self.reach(self.n_done + n)

    def reach(self, n_done: float) -> None:
        """So many items are finished."""
        gained, self.n_done = n_done - self.n_done, n_done
        if not gained:
            return
        if self.bar is not None:
            self.bar.update(gained)
            return
        now_s = time.monotonic()
        if now_s - self.last_s >= LINE_EVERY_S or self.n_done == self.n_items:
            self.last_s = now_s
            rate = (self.n_done - self.n_first) / max(now_s - self.start_s, 1e-9)
            left = f"{(self.n_items - self.n_done) / rate:.0f} s left" if rate else "time left unknown"
            speed = f"{rate:.1f}/s, " if rate >= 1 else ""
            done = round(self.n_done, 1) if self.n_done % 1 else int(self.n_done)
            print(f"{done}/{self.n_items} {self.unit}s, {speed}{left}", file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
