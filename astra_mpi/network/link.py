"""What a transfer takes on an emulated network (docs/explanation/network.md): arithmetic on times, no clock, no MPI.

All times are seconds of one clock that the ranks share. A rank models its own port from what the senders say of theirs:
when it begins to send.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.network.spec import Network
from astra_mpi.partition import Hears, hears


class Link:
    """What rank `rank` of `size` sees of a network, as it stands of one whose switch sends a payload to all at once."""

    def __init__(self, network: Network, rank: int, size: int) -> None:
        assert network.rate is not None, "the real network is not modelled"
        self.network, self.rate = network, network.rate
        self.rank, self.size = rank, size
        self.origin_s = 0.0  # when a trace begins
        self.sent_s = self.received_s = -np.inf  # until when the port, or the medium, is taken

    @property
    def ends(self) -> bool:
        """Whether this is a trace."""
        return self.rate.end_s < np.inf

    def check(self, now_s: float, collective: bool = False) -> None:
        """InputError when a trace has come to its end. collective: all ranks ask with the same time."""
        if now_s - self.origin_s >= self.rate.end_s:
            error = InputError(
                f"{self.rate.origin}: the trace ends at {self.rate.end_s:g} s, before the run does; give a longer one"
            )
            error.collective = collective
            raise error

    def depart(self, now_s: float, counts: Sequence[int], forward: Hears = False) -> float:
        """When this rank begins to send the exchange that it starts at `now_s`; counts (P,) are bytes.

        forward: it sends to the ranks behind it only.
        """
        begin = max(now_s, self.sent_s)
        self.sent_s = self._finish(begin, self._charged(counts)[self.rank])
        return begin

    def arrivals(self, departures_s: np.ndarray, counts: Sequence[int], forward: Hears = False) -> np.ndarray:
        """(P,) when each rank's payload is here, -inf for its own; departures_s (P,), inf: nothing heard of it yet.

        forward: payloads go to the ranks behind their senders only, and the departures of others are -inf.
        """
        arrivals_s = np.array(departures_s, dtype=np.float64)
        arrivals_s[self.rank] = -np.inf
        charged = self._charged(counts)
        heard = [s for s in range(self.size) if np.isfinite(departures_s[s])]
        for sender, crossed_s in self._crossings(heard, departures_s, charged, forward):
            if sender != self.rank:
                arrivals_s[sender] = crossed_s + self.network.rtt_s / 2
        return arrivals_s

    def ready(self, now_s: float) -> float:
        """When this rank's port is free for a reduction that the rank starts at `now_s`."""
        return max(now_s, self.sent_s, self.received_s)

    def reduced(self, start_s: float, n_bytes: int) -> float:
        """When an all-reduce of `n_bytes` is done everywhere, the last rank's port being ready at `start_s`.

        A ring: 2 (P - 1) steps, in each of which every port sends and receives 1/P of the bytes.
        """
        steps = 2 * (self.size - 1)
        self.sent_s = self.received_s = self._finish(start_s, self._reduction(n_bytes))
        return self.sent_s + steps * self.network.rtt_s / 2

    def one_hop(self, n_bytes: int) -> bool:
        """Whether shares of `n_bytes` are combined sooner if every rank sends its own to every rank than in two hops,
        which send what a reduction does. Of a trace by its mean, so that all ranks say the same."""
        more = self._gathering(n_bytes) - self._reduction(n_bytes)
        return 8 * more / self.rate.mean_bps <= self.network.rtt_s / 2

    def hopped(self, start_s: float, n_bytes: int) -> float:
        """When one hop of shares of `n_bytes` is over everywhere, the last rank's port being ready at `start_s`."""
        whole, half = self._gathering(n_bytes), self._reduction(n_bytes) / 2
        self.sent_s = self.received_s = self._finish(start_s, whole if self.one_hop(n_bytes) else half)
        return self.sent_s + self.network.rtt_s / 2

    def _finish(self, begin_s: float, n_bytes: float) -> float:
        """When `n_bytes` have crossed that begin at `begin_s`."""
        return self.origin_s + self.rate.finish(begin_s - self.origin_s, n_bytes)

    def _charged(self, counts: Sequence[int]) -> Sequence[float]:
        """Bytes that a rank's payload counts for."""
        if self.network.accounting == "paper":
            return [sum(counts) / self.size] * self.size
        return counts

    def _reduction(self, n_bytes: int) -> float:
        return n_bytes / self.size if self.network.accounting == "paper" else n_bytes

    def _gathering(self, n_bytes: int) -> float:
        """Bytes that the all-gather of shares of `n_bytes` counts for."""
        return n_bytes

    def _copies(self, sender: int, forward: Hears) -> int:
        """Ranks that a payload goes to."""
        return sum(hears(receiver, sender, forward) for receiver in range(self.size))

    def _nearer(self, sender: int, forward: Hears) -> int:
        """Receivers that are nearer to the sender than this rank is."""
        nearer = range(1, (self.rank - sender) % self.size)
        return sum(hears((sender + i) % self.size, sender, forward) for i in nearer)

    def _crossings(
        self, heard: list[int], departures_s: np.ndarray, charged: Sequence[float], forward: Hears
    ) -> list[tuple[int, float]]:
        """Senders and when their payloads have crossed the network, latency apart."""
        return [(s, self._finish(float(departures_s[s]), charged[s])) for s in heard]


class Port(Link):
    """A port to a switch, full duplex, that sends a copy to every receiver, the nearest first."""

    def depart(self, now_s: float, counts: Sequence[int], forward: Hears = False) -> float:
        begin = max(now_s, self.sent_s)
        self.sent_s = self._finish(begin, self._copies(self.rank, forward) * counts[self.rank])
        return begin

    def _reduction(self, n_bytes: int) -> float:
        return 2 * (self.size - 1) * n_bytes / self.size

    def _gathering(self, n_bytes: int) -> float:
        return (self.size - 1) * n_bytes

    def _crossings(
        self, heard: list[int], departures_s: np.ndarray, charged: Sequence[float], forward: Hears
    ) -> list[tuple[int, float]]:
        """Out through the senders' ports, and in through this one in the order in which copies begin to come."""
        copies = []
        for s in heard:
            if s != self.rank:
                before = self._nearer(s, forward)
                copies.append((self._finish(float(departures_s[s]), before * charged[s]), s))
        crossed = []
        for begin, s in sorted(copies):
            left_s = self._finish(begin, charged[s])
            self.received_s = max(left_s, self._finish(max(begin, self.received_s), charged[s]))
            crossed.append((s, self.received_s))
        return crossed


class Medium(Link):
    """One medium that carries one message at a time, of ranks in the order in which they start."""

    def depart(self, now_s: float, counts: Sequence[int], forward: Hears = False) -> float:
        return now_s  # when it is served is settled by the departures of all

    def _crossings(
        self, heard: list[int], departures_s: np.ndarray, charged: Sequence[float], forward: Hears
    ) -> list[tuple[int, float]]:
        accounting = self.network.accounting
        share = 1 / self.size if accounting == "paper" else 1  # one payload in all
        crossed = []
        for s in sorted(heard, key=lambda s: (departures_s[s], s)):
            begin = max(float(departures_s[s]), self.sent_s)
            copies = self._copies(s, forward) if accounting == "port" else 1
            mine = self._nearer(s, forward) + 1 if copies > 1 else 1  # copies until this rank has its own
            crossed.append((s, self._finish(begin, mine * share * charged[s])))
            self.sent_s = self._finish(begin, copies * share * charged[s])
        return crossed

    def _reduction(self, n_bytes: int) -> float:
        per_rank = {"port": 2 * (self.size - 1), "contributed": self.size, "paper": 1 / self.size}
        return n_bytes * per_rank[self.network.accounting]

    def _gathering(self, n_bytes: int) -> float:
        per_rank = {"port": self.size * (self.size - 1), "contributed": self.size, "paper": 1}
        return n_bytes * per_rank[self.network.accounting]


def make_link(network: Network, rank: int, size: int) -> Link | None:
    """The link of a rank, or None where nothing is modelled."""
    if network.rate is None or size == 1:
        return None
    kind = Medium if network.shared else Port if network.accounting == "port" else Link
    return kind(network, rank, size)
