"""Load a model file on every rank of a communicator, and refuse what is not the same everywhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from mpi4py import MPI

from astra_mpi.config import require
from astra_mpi.device.backend import AUTO_COMPUTE, check_compute, get_backend
from astra_mpi.device.memory import memory_here
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.errors import InputError, collective, collective_steps, same_on_all
from astra_mpi.files import codecfile, modelfile
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.kernels.aligned import LINE
from astra_mpi.models import FAMILIES
from astra_mpi.network.conditions import parse_conditions
from astra_mpi.network.units import duration_s
from astra_mpi.partition import cut
from astra_mpi.planner.balance import rank_speeds
from astra_mpi.planner.stage_cut import check_stages, cut_stages
from astra_mpi.ranks.grid import Groups, make_groups, parse_grid
from astra_mpi.ranks.watched import alone, watched
from astra_mpi.replicas.replicas import Replicas
from astra_mpi.stages.part import Part
from astra_mpi.stages.pipeline import Pipeline
from astra_mpi.strategies import AUTO, STRATEGIES, coded_form, parse_request
from astra_mpi.strategies.wire import WIRES

if TYPE_CHECKING:
    from astra_mpi.planner.trial import Items


def load(
    path: str,
    *,
    comm: MPI.Comm,
    strategy: str | None = "auto",
    grid: str | None = None,
    objective: str = "latency",
    stages: Sequence[int] | str | None = None,
    handed_on: str = "float16",
    backend: str = "numpy",
    transport: str = "host",
    precision: str = "float32",
    compute: str = "float32",
    codebooks: str | None = None,
    weights: Sequence[float] | str | None = None,
    counted_keys: bool = True,
    remote: str = "auto",
    halves: bool | str = "auto",
    encoder: str = "auto",
    pooling: str | None = None,
    normalize: bool | None = None,
    threads: int | None = None,
    network: str = "real",
    accounting: str = "port",
    clock: str = "wall",
    speed: float | Sequence[float] = 1.0,
    deadline: str | None = None,
    missing: str = "auto",
    seed: int = 0,
    watchdog: str | None = None,
    tokens: int | None = None,
    new_tokens: int = 0,
    items: Items | None = None,
) -> Any:
    """Load the model file at `path` on every rank of `comm`. Collective. -> a `Model`; with a grid of several replicas
    `Replicas`, which are called alike.

    strategy: a name with options, such as "astra", "sp", "sp:kv:int8", "segment_means:8"; "auto": `astra` with
    codebooks, else the exact strategy that is predicted to be fastest here (docs/explanation/planner.md), for one
    sequence of `tokens` (default the model's own, up to 1024) and `new_tokens` after it; None: none yet,
    `Model.use` comes first. grid: replicas x stages x tokens, such as "4x1x1"; None: all ranks share the tokens of
    every sequence (docs/explanation/grid.md). backend: "numpy", "reference" or "cuda"; of the latter, transport:
    "host" or "cuda-aware", how messages get to MPI, and precision: "float32", "tf32" or "float16"
    (docs/explanation/gpu.md). compute: "float32", "bfloat16" or "int8", how products are computed on "numpy";
    "auto": the fastest of these that changes this model's answers by little (docs/explanation/compute.md).
    codebooks: a codebook file for this model, instead of the codebooks inside it. weights: relative speeds of the
    ranks that share tokens, for a cut with which they finish together; "auto" measures them, "causal" takes them as
    equal where later tokens cost more (decoders), "even" and None cut evenly. counted_keys: let far tokens of equal
    code share a key (exact). remote: "table", "gemm" or "auto" (timed), how far keys come from codes. halves: whether a
    batch of several sequences is computed as two halves in turns, of which one computes while the exchange of the other
    travels; "auto": where that is predicted to be faster (docs/explanation/waiting.md). encoder:
    "auto" searches codebooks in their subspace where they have one, "exact" in all of the space. pooling,
    normalize: in place of the model's own, a classifier of texts being taken off. threads: of BLAS and Numba in
    this process; None leaves them as they are. network: "real", or one to emulate such as "10Mbps,rtt=2ms,loss=1%";
    accounting: which bytes it charges, "port", "contributed" or "paper". clock: "wall", or "virtual", which counts
    CPU seconds `speed` times, one factor or one per rank. deadline: such as "5ms", how long astra waits at one
    exchange; missing: codes are dropped ("drop"), replaced ("mean") or go without ("predict"); "auto" is the last
    where codes are of what a prediction misses, else the first. seed: of what is lost. docs/explanation/network.md
    has them all. watchdog: such as "60s" (None: 300 s), how long a rank waits for a silent one before it names it
    and ends all by MPI's Abort (docs/explanation/faults.md); "0": for ever. items: opens those of a job, on which
    compute = "auto" tries types of products; without them, it takes sample texts (images: random ones).

    Raises InputError on all ranks alike: files that cannot be read or differ between ranks, or options that do not fit.
    """
    request = None if strategy is None else parse_request(strategy)
    auto = request is not None and request.name == AUTO
    comm = watched(comm, None if watchdog is None else duration_s(watchdog))
    require(encoder in ("auto", "exact"), f"encoder '{encoder}' is unknown; use auto or exact")
    require(halves in ("auto", True, False), f"halves '{halves}' is unknown; use auto, True or False")
    check_compute(backend, compute)
    with collective(comm):
        shape = parse_grid(None if grid == AUTO else grid, comm.Get_size())
        require(
            grid != AUTO or weights is None or isinstance(weights, str),
            "weights of ranks that share tokens need a grid that says how many these are; give one in place of auto",
        )
        speeds = _speeds(weights, shape.tokens)
        require(handed_on in WIRES, f"handed_on '{handed_on}' is unknown; use one of {', '.join(WIRES)}")
        check_stages(stages, shape.stages)
        conditions = parse_conditions(
            comm.Get_size(),
            network=network,
            accounting=accounting,
            clock=clock,
            speed=speed,
            deadline=deadline,
            missing=missing,
            seed=seed,
        )
        require(
            transport == "host" or deadline is None,
            f"a deadline with transport {transport}: messages that come late are received on the host; use host",
        )
        if threads is not None:
            set_threads(threads)
    groups, time_there, parts = make_groups(comm, shape), conditions.make_clock(comm), None
    with collective_steps(comm):
        if shape.stages > 1:
            whole = compute != AUTO_COMPUTE
            require(whole, "compute = auto tries a whole model, and stages hold parts of one; name the type")
            parts = cut_stages(path, groups, stages, time_there, compute)
    with collective(comm):
        options = {"pooling": pooling, "normalize": normalize}
        changes = {name: value for name, value in options.items() if value is not None}
        reads_part = request is not None and not auto and STRATEGIES[request.name].reads_part and grid != AUTO
        share = (comm.Get_rank() % shape.tokens, shape.tokens) if reads_part else (0, 1)
        with alone(comm, f"reading {path}"):
            part = parts[groups.place[1]] if parts else None
            file = _read(path, codebooks, changes, share, part)
        family = file.config.family
        fits = FAMILIES[family].causal or weights != "causal"
        require(fits, f"{path}: a {family} model attends both ways; use weights = even")
        if request is not None and not auto:
            n_ranks = shape.tokens if grid != AUTO else 1
            reason = STRATEGIES[request.name].obstacle(request, file.config, file.codec, n_ranks)
            require(reason is None, f"{path} with strategy {request}: {reason}")
        if file.codec is not None and encoder == "exact":
            file = dataclasses.replace(file, codec=file.codec.exact())
    _same_everywhere(comm, f"{path} differs between ranks; copy the same file to every machine", file.digest)
    digest = file.codec.digest if file.codec else ""
    _same_everywhere(comm, "the codebooks differ between ranks; copy the same file to every machine", digest)
    _same_everywhere(
        comm,
        f"network '{network}' differs between ranks; copy the same trace to every machine",
        conditions.network.digest,
    )
    chosen = None
    if compute == AUTO_COMPUTE:
        from astra_mpi.inputs.samples import sample_texts
        from astra_mpi.planner.compute import choose_compute  # above this module: it runs the model

        backend_there, chosen = choose_compute(file, comm, items or sample_texts)
    else:
        backend_there = get_backend(backend, comm, transport, precision, compute)
    if grid == AUTO:
        from astra_mpi.planner.auto import usual  # above this module: it runs the planner
        from astra_mpi.planner.job_grid import choose_grid

        known = dict(config=file.config, codec=file.codec, weights=file.weights, backend=backend_there, blocks=[])
        known |= dict(comm=comm, clock=time_there, exchange=SimpleNamespace(network=conditions.network))
        workload = usual(file.config, tokens, new_tokens)
        shape = parse_grid(choose_grid(SimpleNamespace(**known), workload, objective), comm.Get_size())
        groups = make_groups(comm, shape)
        with collective_steps(comm):
            parts = cut_stages(path, groups, stages, time_there, compute) if shape.stages > 1 else None
    if backend_there.xp is np:
        emulated = conditions.network.rate is not None
        memory = memory_here(comm, groups.place[1], _most_bytes(file), emulated)
        backend_there = dataclasses.replace(backend_there, memory=memory)
        with collective(comm):  # which takes memory
            if file.codec is not None and memory.pages is not None:
                file = dataclasses.replace(file, codec=file.codec.kept(memory.keep))
    whole_file = file
    if parts:
        with collective(comm):
            file = parts[groups.place[1]].of_file(file)
    model: Any = Model(file, groups.tokens, backend_there, speeds, conditions, time_there)
    model.chosen_compute, model.chosen_grid = chosen, str(shape) if grid == AUTO else None
    if halves == "auto" and shape.replicas == 1:
        from astra_mpi.planner.halving import WherePays  # above this module: it runs the planner

        model.halves = WherePays()
    else:  # replicas would decide apart, and differ in last bits
        model.halves = halves is True
    if weights == "auto":
        model.cut_weights = _alike(rank_speeds(model), groups)
    if parts:
        model = Pipeline(model, whole_file, groups, parts, handed_on)
        model.read_whole = partial(_read, path, codebooks, changes, (0, 1), None)
    if shape.replicas > 1:
        model = Replicas(model, groups)
    if request is None:
        return model
    if auto:
        from astra_mpi.planner.auto import decide, usual  # above this module: it runs the planner

        with collective(comm):
            workload = usual(model.config, tokens, new_tokens)
        decide(model, workload, coded_form(request), advises=False, counted_keys=counted_keys, remote=remote)
    else:
        model.use(str(request), counted_keys=counted_keys, remote=remote)
    return model


def _alike(speeds: list[float], groups: Groups) -> list[float]:
    """Collective: the mean over replicas, so that a sequence is cut alike whichever replica computes it."""
    total = np.array(speeds)
    groups.across.Allreduce(MPI.IN_PLACE, total)
    return [float(speed) for speed in np.round(total / total.max(), 3)]


def _speeds(weights: Sequence[float] | str | None, size: int) -> Sequence[float] | str | None:
    """`weights` of `load`, checked before any work; None for an even cut, and for one that is measured later."""
    known = not isinstance(weights, str) or weights in ("auto", "even", "causal")
    require(known, f"weights '{weights}': use even, auto, causal, or one number per rank")
    speeds = None if weights in ("auto", "even") else weights
    if not isinstance(speeds, str):
        cut(np.zeros(1, np.int64), size, speeds)
    return speeds


def _read(
    path: str, codebooks: str | None, changes: dict[str, Any], share: tuple[int, int], part: Part | None
) -> ModelFile:
    """The model file with these settings of its config and, if given, other codebooks. InputError.

    share: which weights' contents this rank checks (`read_model`). part: the blocks that it holds; all.
    """
    held = None if part is None else part.holds(modelfile.is_tied(path))
    file = modelfile.read_model(path, share, held)
    codec = codecfile.read_codebooks(codebooks, file.digest) if codebooks else file.codec
    unknown = [name for name in changes if not hasattr(file.config, name)]
    require(not unknown, f"{path}: a {file.config.family} model has no option {', '.join(unknown)}")
    config = file.config
    if "pooling" in changes and getattr(config, "pairs", False):
        plain = changes["pooling"] != "pooler"
        require(plain, f"{path}: pooling 'pooler' is what its classifier takes; for embeddings use mean or cls")
        config = config.for_embeddings(changes["pooling"])
    before = config
    config = dataclasses.replace(config, **changes)
    same = modelfile.weight_shapes(config) == modelfile.weight_shapes(before)
    require(same, f"{path}: {', '.join(changes)} does not fit the model's head, which was trained for another")
    if codec is not None:
        codecfile.check_codec(codec, config, codebooks or path)
    return dataclasses.replace(file, config=config, codec=codec)


def _most_bytes(file: ModelFile) -> int:
    """Room for what ranks of a machine share: weights that products read, as rows of float32 numbers whose ends are
    filled up, as much again for tables of far keys and values, and codebooks. What is more each rank has for itself."""
    shapes = modelfile.weight_shapes(file.config).values()
    weights = sum(4 * math.prod(shape) + 2 * LINE * shape[0] for shape in shapes if len(shape) > 1)
    return 2 * weights + (file.codec.kept_bytes if file.codec else 0)


def _same_everywhere(comm: MPI.Comm, message: str, digest: str) -> None:
    mine = np.frombuffer(digest.ljust(64).encode(), dtype=np.uint8)
    every = np.empty((comm.Get_size(), 64), dtype=np.uint8)
    comm.Allgather(mine, every)
    other = np.flatnonzero((every != every[0]).any(axis=1))
    if other.size:
        raise same_on_all(InputError(f"{message} (rank {other[0]} has another than rank 0)"))
