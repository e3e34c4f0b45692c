"""The points of a sweep put together, in the form of `astra-mpi bench --json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from astra_mpi import __version__
from astra_mpi.measure.sweep.deck import SweepDeck
from astra_mpi.measure.sweep.points import Point
from astra_mpi.network.spec import parse_network

Record = dict[str, Any]  # of a point: "settings", and "runs", "host" and "versions", or "failure" and "exit_code"


def together(deck: SweepDeck, measured: Sequence[tuple[Point, Record]]) -> dict[str, Any]:
    """Points and what is known of them as one result.

    A run is its point's last one; the one before it is the `single` that it was compared with.
    """
    runs, failures, hosts = [], [], []
    name = deck.model.preset or str(deck.model.path)
    for point, record in measured:
        emulated = parse_network(point.network).rate is not None  # one rank charges nothing, and says so with None
        told = {
            "model_name": name,
            "codec_name": point.codec,
            "accounting": deck.sweep.accounting if emulated else None,
        }
        if "failure" in record:
            failures.append({**vars(point), **told, "failure": record["failure"]})
            continue
        first, last = record["runs"][0], record["runs"][-1]
        versus = {"speedup": last["spread"]["over_first"], "reference_s": first["latency_s"]["total"]}
        runs.append({**last, **told, **versus, "network": point.network, "ranks": point.ranks})
        where = {"host": record["host"], "versions": record["versions"]}
        if where not in hosts:
            hosts.append(where)
    alone = hosts[0] if hosts else {}
    return {
        "astra_mpi": __version__,
        "runs": runs,
        "failures": failures,
        "deck": deck.as_dict(),
        "hosts": hosts,
        **alone,
    }
