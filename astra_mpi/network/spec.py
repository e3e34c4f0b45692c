"""A network as its user describes it: `10Mbps,rtt=2ms,loss=1%,shared`, a trace of bandwidth over time, or the real one.

What a transfer takes on it is in `link.py`, where docs/explanation/network.md has the model.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.network.units import bandwidth_bps, duration_s

#: which bytes an emulated link charges, see docs/explanation/network.md
Accounting = Literal["contributed", "port", "paper"]
ACCOUNTINGS: tuple[str, ...] = get_args(Accounting)
_FORM = "use real, BANDWIDTH or trace:FILE, then any of rtt=2ms, loss=1% and shared, with commas between"


@dataclass(frozen=True, eq=False)
class Rate:
    """Bandwidth over time: bps[i] from times_s[i] on, the last one for ever."""

    times_s: np.ndarray  # (n,) increasing, from 0
    bps: np.ndarray  # (n,) above 0
    end_s: float = np.inf  # where what was measured ends
    origin: str = ""  # the file

    @property
    def mean_bps(self) -> float:
        """Over the time for which each row holds; of a bandwidth without an end that bandwidth."""
        if not np.isfinite(self.end_s):
            return float(self.bps[-1])
        return float(np.average(self.bps, weights=np.diff(self.times_s, append=self.end_s)))

    def finish(self, start_s: float, n_bytes: float) -> float:
        """When a transfer of `n_bytes` that begins at `start_s` ends, alone on the link."""
        i = max(int(np.searchsorted(self.times_s, start_s, "right")) - 1, 0)
        bits = 8.0 * n_bytes
        while i + 1 < len(self.times_s):
            room = (self.times_s[i + 1] - start_s) * self.bps[i]
            if bits <= room:
                break
            bits -= room
            i += 1
            start_s = float(self.times_s[i])
        return start_s + bits / float(self.bps[i])


@dataclass(frozen=True, eq=False)
class Network:
    """Every rank has a port of this bandwidth to one switch, or all share one medium."""

    text: str = "real"  # as given
    rate: Rate | None = None  # of every port, or of the medium; None: nothing is emulated but loss
    rtt_s: float = 0.0  # there and back
    loss: float = 0.0  # share of the messages that do not arrive: a sender's slice, for one receiver, in one block
    shared: bool = False
    accounting: str = "port"

    @property
    def digest(self) -> str:
        """Of the bandwidths: what ranks compare, each of which has read the trace for itself."""
        return hashlib.sha256(self.rate.times_s.tobytes() + self.rate.bps.tobytes()).hexdigest() if self.rate else ""


REAL = Network()


def parse_network(text: str, accounting: str = "port") -> Network:
    """`--network` -> Network. InputError says which part is wrong; a trace file is read here."""
    require(accounting in ACCOUNTINGS, f"accounting '{accounting}' is unknown; use one of {', '.join(ACCOUNTINGS)}")
    first, *rest = (part.strip() for part in text.split(","))
    with_text = f"network '{text}': "
    if first.startswith("trace:"):
        rate: Rate | None = read_trace(first.removeprefix("trace:"))
    elif first == "real":
        rate = None
    else:
        require("=" not in first and first != "shared", f"{with_text}no bandwidth is given; {_FORM}")
        rate = Rate(np.zeros(1), np.array([_named(with_text, bandwidth_bps, first)]))
    rtt_s, loss, shared = 0.0, 0.0, False
    for part in rest:
        key, _, value = part.partition("=")
        require(rate is not None or key == "loss", f"{with_text}the real network takes loss only; {_FORM}")
        if key == "rtt":
            rtt_s = _named(with_text, duration_s, value)
        elif key == "loss":
            loss = _named(with_text, _share, value)
        else:
            require(part == "shared", f"{with_text}'{part}' is unknown; {_FORM}")
            shared = True
    return Network(text, rate, rtt_s, loss, shared, accounting)


def read_trace(path: str) -> Rate:
    """CSV with the columns time_s, mbps: each row holds until the next one, the last as long as the one before it.

    InputError, with the line, on anything else than times that increase from 0 and bandwidths above 0.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path}: the trace cannot be read ({exc}); give a CSV file with time_s,mbps") from exc
    require(
        bool(rows) and [name.strip() for name in rows[0]] == ["time_s", "mbps"],
        f"{path}: the first line of a trace is time_s,mbps",
    )
    values = np.array([_trace_row(path, i, row) for i, row in enumerate(rows[1:], 2) if row]).reshape(-1, 2)
    require(len(values) >= 2, f"{path}: a trace has two rows or more, this one has {len(values)}")
    times_s, bps = values[:, 0], values[:, 1] * 1e6
    require(times_s[0] == 0, f"{path}: a trace starts at 0 s, this one at {times_s[0]:g} s")
    steps_s = np.diff(times_s)
    require(
        bool((steps_s > 0).all()), f"{path}: times do not increase after {times_s[steps_s.argmin()]:g} s; sort them"
    )
    return Rate(times_s, bps, float(times_s[-1] + steps_s[-1]), path)


def _trace_row(path: str, line: int, row: list[str]) -> tuple[float, float]:
    try:
        time_s, mbps = map(float, row)
    except ValueError as exc:
        raise InputError(f"{path}, line {line}: '{','.join(row)}' is not two numbers time_s,mbps") from exc
    require(np.isfinite(time_s) and 0 < mbps < np.inf, f"{path}, line {line}: bandwidth {mbps:g} Mbps is not above 0")
    return time_s, mbps


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / 100 if text.endswith("%") else np.nan
    except ValueError:
        share = np.nan
    require(0 <= share <= 1, f"loss '{text}' is not a percentage; give one such as loss=1%")
    return float(share)


def _named(where: str, read: object, text: str) -> float:
    """`read(text)`, a complaint of which names the whole option."""
    assert callable(read)
    try:
        return float(read(text))
    except InputError as exc:
        raise InputError(f"{where}{exc}") from exc
