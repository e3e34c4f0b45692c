"""Strategies: what a rank owns and what it exchanges. One file each, and its line in the table below.

Knows a model's blocks and what carries bytes, not who asks for a forward pass and why.
"""

from astra_mpi.strategies import spec as _spec
from astra_mpi.strategies.astra import Astra
from astra_mpi.strategies.base import Parts, Strategy
from astra_mpi.strategies.bp import BlockParallel
from astra_mpi.strategies.segment_means import SegmentMeans
from astra_mpi.strategies.single import Single
from astra_mpi.strategies.sp import SequenceParallel
from astra_mpi.strategies.spec import Spec, Value
from astra_mpi.strategies.tp import TensorParallel

_ALL: tuple[type[Strategy], ...] = (Single, SequenceParallel, TensorParallel, BlockParallel, SegmentMeans, Astra)
STRATEGIES = {strategy.name: strategy for strategy in _ALL}

_KNOWN = {name: strategy.options for name, strategy in STRATEGIES.items()}


#: instead of a strategy: `astra` with codebooks, else what is predicted to be fastest (`astra_mpi.planner.auto`)
AUTO = "auto"


def parse(text: str, **keys: Value | None) -> Spec:
    """name[:option[:option]] -> spec; `keys`: options given beside it. InputError lists what is possible."""
    return _spec.parse_spec(text, _KNOWN, keys)


def parse_request(text: str, **keys: Value | None) -> Spec:
    """`parse`, but that AUTO stands for itself, with the options of `astra`."""
    return _spec.parse_spec(text, {**_KNOWN, AUTO: Astra.options}, keys)


def coded_form(request: Spec) -> str:
    """The `astra` that AUTO stands for where there are codebooks."""
    return str(Spec(Astra.name, request.known, request.values))


def forms(text: str) -> list[str]:
    """A strategy's name -> the specs of all its forms; a spec with options -> itself."""
    return _spec.forms(text, _KNOWN) if text in _KNOWN else [str(parse(text))]


__all__ = ["AUTO", "STRATEGIES", "Parts", "Spec", "Strategy", "coded_form", "forms", "parse", "parse_request"]
