"""These ranks against the serial oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.device.formats.blocks import Blocks
from astra_mpi.engine import Model
from astra_mpi.errors import collective
from astra_mpi.oracle.narrow import WEIGHTS_ONLY, InBlocks
from astra_mpi.oracle.products import excess
from astra_mpi.oracle.reference import OracleResult, oracle, position_rows
from astra_mpi.oracle.tolerance import Tolerance, tolerance_of
from astra_mpi.partition import displs
from astra_mpi.ranks.watched import alone
from astra_mpi.strategies import forms

if TYPE_CHECKING:
    from astra_mpi.partition import Layout


@dataclass(frozen=True)
class Check:
    """What one strategy's comparison found, over all sequences and ranks."""

    strategy: str
    max_difference: float  # of answers and hidden states, over the largest magnitude
    mean_difference: float
    flips: int  # codes or rounded numbers that are not the oracle's choice: near-ties unless the gap is large
    worst_gap: float
    contributed_bytes: int
    formula_bytes: int
    passed: bool
    reason: str  # why it failed or was skipped, else empty
    note: str = ""  # what its answers are good for, where that is not everything
    tolerance: float = 0.0  # of max_difference
    gap_tolerance: float = 0.0  # of worst_gap

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify(
    model: Model,
    inputs: np.ndarray,
    mask: np.ndarray | None,
    strategies: Sequence[str],
    counted_keys: bool = True,
    spread: bool = False,
) -> list[Check]:
    """Collective: run every strategy on these ranks and hold it against the oracle on rank 0.

    strategies: specs; a name without options stands for all its forms. spread: the cut of `Model.generate`. Returns
    one check per form on rank 0, an empty list elsewhere. A form that cannot be used here is skipped: passed, with
    the reason.
    """
    checks = [_check(model, inputs, mask, spec, counted_keys, spread) for text in strategies for spec in forms(text)]
    return [check for check in (_check_products(model), *checks) if check is not None]


def _check_products(model: Model) -> Check | None:
    """Collective: the products of every rank by themselves, where they are narrow; of the rank that is worst."""
    compute, comm = _compute(model), model.comm
    if compute == "float32":
        return None
    with collective(comm), alone(comm, "products alone"):
        mine, name = excess(model, compute, _as_held)
    every = np.empty(comm.Get_size())
    comm.Allgather(np.array([mine]), every)
    if comm.Get_rank() > 0:
        return None
    passed = bool((every <= 1).all())  # NaN is not
    worst = float(every.max())
    where = f" (rank 0: {name})" if name and worst == mine else f" (rank {int(every.argmax())})"
    reason = "" if passed else f"a product differs by {worst:.3g} times what its type may{where}"
    return Check("products", worst, worst, 0, 0.0, 0, 0, passed, reason, "over what is accepted of one product", 1.0)


def _check(
    model: Model, inputs: np.ndarray, mask: np.ndarray | None, spec: str, counted_keys: bool, spread: bool
) -> Check | None:
    on_root = model.comm.Get_rank() == 0
    if reason := model.obstacle(spec):
        return Check(spec, 0, 0, 0, 0, 0, 0, True, f"skipped: {reason}") if on_root else None
    model.use(spec, counted_keys=counted_keys)
    strategy = model.strategy
    strategy.record()
    answer, hidden = model(inputs, mask, gather=True, spread=spread)
    answers, terms = _all_answers(model, answer), strategy.oracle_terms()
    if not on_root:
        return None
    with alone(model.comm, "the oracle"):
        expected = _oracle_results(model, inputs, mask, strategy.planned, terms)
    missing = model.report["missing"]
    lost = f"{missing['lost']} lost and {missing['late']} late of {missing['messages']} messages" if missing else ""
    allowed = tolerance_of(_compute(model), model.config.n_layers)
    return _judge(spec, strategy.latency_only or lost, model.report, expected, answers, hidden, allowed)


def _compute(model: Model) -> str:
    """What is rounded in its products, as the oracle names it (`narrow.py`)."""
    compute = model.backend.compute
    return WEIGHTS_ONLY[compute] if model.backend.choices.get("products") == "widened" else compute


def _all_answers(model: Model, answer: np.ndarray) -> np.ndarray:
    """The answers of all ranks, (P, B, width), on every rank."""
    every = np.empty((model.comm.Get_size(), *answer.shape), answer.dtype)
    model.comm.Allgather(np.ascontiguousarray(answer), every)
    return every


def _oracle_results(
    model: Model, inputs: np.ndarray, mask: np.ndarray | None, layout: Layout, terms: dict[str, Any]
) -> list[OracleResult]:
    """Per sequence. Codes and rounded rows are the engine's own: the oracle uses and judges them. It rounds factors of
    products as the engine's type does."""
    terms = {**terms, "compute": _compute(model)}
    per_token: dict[str, Any] = {name: terms.pop(name) for name in ("codes", "seen") if name in terms}
    first = displs(layout.lengths)
    results = []
    weights = {name: _as_held(weight) for name, weight in model.weights.items()}
    for s, counts in enumerate(layout.counts):
        tokens, positions = inputs[s], None
        if mask is not None:
            keep = np.asarray(mask[s], bool)
            positions = np.flatnonzero(keep)
            terms["position_rows"] = position_rows(model.config, tokens if tokens.ndim == 1 else tokens[:, 0], keep)
            tokens = tokens[keep]
        mine = layout.sequence_order[first[s] : first[s + 1]]
        given: dict[str, Any] = {name: [block[mine] for block in blocks] for name, blocks in per_token.items()}
        ranks = layout.order[s]  # the oracle numbers ranks by the slices of this sequence that they have
        owner = np.repeat(np.arange(layout.size), counts[ranks])
        if terms.get("missing") is not None:
            given["missing"] = [block[ranks][:, ranks] for block in terms["missing"]]
        results.append(oracle(model.config, weights, tokens, owner, layout.size, positions=positions, **terms | given))
    return results


def _as_held(weight: Any) -> np.ndarray:
    """A weight as narrow types hold it."""
    wide = np.asarray(weight)
    return wide.view(InBlocks) if isinstance(weight, Blocks) else wide


def _judge(
    spec: str,
    note: str,
    report: dict[str, Any],
    expected: list[OracleResult],
    answers: np.ndarray,
    hidden: np.ndarray,
    allowed: Tolerance,
) -> Check:
    differences, means = [], []
    for s, want in enumerate(expected):
        for got, ref in ((answers[:, s], want.output), (hidden[s, : len(want.hidden)], want.hidden)):
            if ref.size:
                off = np.abs(got - ref) / np.abs(ref).max()
                differences.append(float(off.max()))
                means.append(float(off.mean()))
    worst_gap = max((r.worst_gap for r in expected), default=0.0)
    contributed, formula = sum(report["contributed_bytes"]), sum(report["formula_bytes"])
    reasons = []
    # written so that NaN fails
    if not max(differences, default=0.0) <= allowed.difference:
        reasons.append(f"differs from the oracle by {max(differences):.1e} (tolerance {allowed.difference:.0e})")
    mean = float(np.mean(means)) if means else 0.0
    if not mean <= allowed.mean:
        reasons.append(f"differs from the oracle by {mean:.1e} on average (tolerance {allowed.mean:.0e})")
    if not worst_gap <= allowed.gap:
        reasons.append(
            f"a code or a rounded number is not the nearest (gap {worst_gap:.1e}, tolerance {allowed.gap:.0e})"
        )
    if report["contributed_bytes"] != report["formula_bytes"]:
        reasons.append(f"contributed {contributed} bytes, formula {formula}")
    return Check(
        spec,
        max(differences, default=0.0),
        mean,
        sum(r.flips for r in expected),
        worst_gap,
        contributed,
        formula,
        not reasons,
        "; ".join(reasons),
        note,
        allowed.difference,
        allowed.gap,
    )
