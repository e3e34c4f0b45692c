"""Time of a further token, against what a user would take instead on one machine: one thread each, all in turns.

python jobs/bench/token_bench.py --ours FILE.h5:float32,FILE.h5:int8,.. [--gguf FILE,FILE [--llama FOLDER]]
    [--torch FILE.h5] [--contexts 32,1024] [--tokens 24] [--rounds 7]
mpirun -n 4 python jobs/bench/token_bench.py --astra FILE.h5:float32 [--contexts 1024] [--tokens 24] [--rounds 7]

Random prompts of so many tokens and `tokens` after them, the most likely ones; a round takes all in turns, and the
median of its tokens counts. llama.cpp runs with both settings of its attention: in this process, through
`xllamacpp`, or in one of its own, as jobs/peers/get.sh has built it in a folder for this machine's processor. PyTorch
runs transformers' model in float32 and bfloat16. Beside our times: the bytes that a token reads (weights that it
multiplies by, keys and values) and what they would take at the speed of a plain read. Times are CPU milliseconds of the
process, so that they bear other work on the machine.

--astra: decoding on the rank with the last token, after a prompt cut over the ranks with random codebooks (site `kv`, 8
groups of 256 entries), with far tokens kept as keys and as codes, over `single` on the same rank. JSON last.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from built_llama import BuiltLlama
from mpi4py import MPI

import astra_mpi
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.device.backend import get_backend
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import read_model

GROUPS, ENTRIES = 8, 256
#: prompt (T,), new tokens -> CPU milliseconds of each of them but the first
Run = Callable[[np.ndarray, int], list[float]]


def ours(model: Model, **options: Any) -> Run:
    def run(ids: np.ndarray, n: int) -> list[float]:
        ends: list[float] = []

        def sample(logits: np.ndarray, sequences: np.ndarray, step: int) -> np.ndarray:
            chosen: np.ndarray = logits.argmax(axis=1)
            ends.append(time.process_time() * 1e3)
            return chosen

        model.generate(ids[None], max_new_tokens=n, sample=sample, **options)
        return np.diff(ends).tolist()

    return run


def read_bytes(model: Model, n_tokens: int) -> int:
    """What a token reads at this length of the context."""
    family: Any = model.family
    spare = family.w["embed.word"].nbytes if family.config.tied and family.word_head is not None else 0
    config: Any = model.config
    number = {"float32": 4, "bfloat16": 2, "int8": 1}[model.backend.kernels.compute]
    factor = 4 / config.d_head if number == 1 else 0
    kept = int(2 * config.d_kv * config.n_layers * n_tokens * (number + factor))
    return int(model.weight_bytes) - spare + kept


def llama_cpp(gguf: str, flash: bool) -> Run:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = gguf, 2048, 1, False
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    kind = "ENABLED" if flash else "DISABLED"
    settings.flash_attn_type = getattr(xllamacpp.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{kind}")
    server = xllamacpp.Server(settings)

    def complete(ids: np.ndarray, n: int) -> float:
        asked = {"prompt": ids.tolist(), "n_predict": n, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
        begin_s = time.process_time()
        server.handle_completions(asked)
        return (time.process_time() - begin_s) * 1e3

    def run(ids: np.ndarray, n: int) -> list[float]:
        complete(ids, 1)  # the prompt stays in its cache
        fewer = complete(ids, 1)
        return [(complete(ids, n) - fewer) / (n - 1)]

    return run


def built_llama_cpp(work: str, gguf: str, flash: bool) -> Run:
    """In a process of its own: it counts on the AMX tiles that it has described once."""
    ask = BuiltLlama(work, gguf, flash).ask
    return lambda ids, n: [float(one) for one in np.diff(ask(ids, n)[1:])]


def torch_run(path: str, kind: str) -> Run:
    import torch
    from versus_torch import torch_twin

    torch.set_num_threads(1)
    file = read_model(path)
    twin = torch_twin(file.config, {name: np.asarray(weight, np.float32) for name, weight in file.weights.items()})
    twin = twin.to(getattr(torch, kind))

    def run(ids: np.ndarray, n: int) -> list[float]:
        ends: list[float] = []
        with torch.inference_mode():
            new, past = torch.from_numpy(ids[None]), None
            for _ in range(n):
                out = twin(new, past_key_values=past, use_cache=True, logits_to_keep=1)
                new, past = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
                ends.append(time.process_time() * 1e3)
        return np.diff(ends).tolist()

    return run


def in_turns(runs: dict[str, Run], vocabulary: int, args: argparse.Namespace) -> Iterator[tuple[int, dict[str, Any]]]:
    """Per length of the prompt: name -> medians of the rounds (rounds,), ms."""
    rng = np.random.default_rng(0)
    for n_tokens in args.contexts:
        ids = rng.integers(0, vocabulary, n_tokens)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(args.rounds):
            for name, run in runs.items():
                found[name].append(float(np.median(run(ids, args.tokens) or [np.nan])))
        yield n_tokens, {name: np.array(times) for name, times in found.items()}


def plain_read() -> float:
    """GB/s at which one thread reads memory."""
    numbers, best_s = np.ones(1 << 26, np.float32), np.inf
    for _ in range(9):
        begin_s = time.process_time()
        numbers.sum()
        best_s = min(best_s, time.process_time() - begin_s)
    return numbers.nbytes / best_s / 1e9


def against_rivals(args: argparse.Namespace) -> None:
    speed, models, runs = plain_read(), {}, dict[str, Run]()
    for named in args.ours:
        path, _, compute = named.rpartition(":")
        model = astra_mpi.load(path, comm=MPI.COMM_SELF, strategy="single", threads=1, compute=compute)
        name = f"ours {Path(path).stem} {compute}"
        models[name], runs[name] = model, ours(model)
    for gguf in args.gguf:
        for flash in (False, True):
            name = f"llama.cpp {Path(gguf).stem}{' flash' * flash}"
            runs[name] = built_llama_cpp(args.llama, gguf, flash) if args.llama else llama_cpp(gguf, flash)
    for kind in ("float32", "bfloat16") if args.torch else ():
        runs[f"PyTorch {kind}"] = torch_run(args.torch, kind)
    config: Any = next(iter(models.values())).config
    print(f"a plain read of memory: {speed:.1f} GB/s")
    told: dict[str, Any] = {"read_gb_per_s": speed}
    for n_tokens, found in in_turns(runs, config.vocab_size, args):
        print(f"after {n_tokens} tokens: CPU ms per further token, median and least of {args.rounds} rounds")
        for name, times in found.items():
            line = {"median_ms": round(float(np.median(times)), 2), "min_ms": round(float(times.min()), 2)}
            if name in models:
                n_bytes = read_bytes(models[name], n_tokens)
                line |= {"read_mb": round(n_bytes / 1e6, 1), "read_ms": round(n_bytes / speed / 1e6, 2)}
            told[f"{n_tokens} {name}"] = line
            print(f"  {name:44}", "  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    print(json.dumps(told))


def random_codec(config: Any) -> Codec:
    """Entries of about the activations' size; what a code is does not change what it costs."""
    rng = np.random.default_rng(0)

    def book() -> Codebook:
        entries = rng.normal(0, 1, (GROUPS, ENTRIES, config.d_kv // GROUPS)).astype(np.float32)
        return Codebook("grouped", entries, config.d_kv, None)

    blocks = tuple(BlockCodec((book(), book())) for _ in range(config.n_layers))
    return Codec(CodecConfig(site="kv", kind="grouped", groups=GROUPS, codebook_size=ENTRIES), blocks)


def after_astra(args: argparse.Namespace) -> None:
    """Collective."""
    comm = MPI.COMM_WORLD
    path, _, compute = args.astra.rpartition(":")
    file = read_model(path)
    set_threads(1)
    model = Model(
        dataclasses.replace(file, codec=random_codec(file.config)), comm, get_backend("numpy", comm, compute=compute)
    )
    model.use("astra")
    strategies = {"astra": model.strategy}
    model.use("single")
    strategies["single"] = model.strategy

    def run_with(strategy: str, far: str) -> Run:
        def run(ids: np.ndarray, n: int) -> list[float]:
            model.strategy = strategies[strategy]
            own = ours(model, decode="local", far=far)(ids, n)
            return next(times for times in comm.allgather(own) if times)  # of the rank that samples

        return run

    runs = {"single": run_with("single", "keys")}
    runs |= {f"astra, far {far}": run_with("astra", far) for far in ("keys", "codes")}
    config: Any = model.config
    told: dict[str, Any] = {}
    for n_tokens, found in in_turns(runs, config.vocab_size, args):
        for name, times in found.items():
            over = times / found["single"]
            runs[name](np.arange(n_tokens) % config.vocab_size, 2)
            made = model.report["generation"]
            line = {
                "median_ms": round(float(np.median(times)), 2),
                "over_single": round(float(np.median(over)), 3),
                "cache_mb": round(max(made["cache_bytes"]) / 1e6, 2),
            }
            told[f"{n_tokens} {name}"] = line
            if comm.rank == comm.size - 1:
                print(n_tokens, f"{name:18}", "  ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    if comm.rank == comm.size - 1:
        print(json.dumps(told))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several: dict[str, Any] = {"type": lambda text: text.split(",")}
    parser.add_argument("--ours", **several, default=[], help="model files with the type of their products")
    parser.add_argument("--gguf", **several, default=[], help="files for llama.cpp")
    parser.add_argument("--llama", default="", help="the folder of jobs/peers/get.sh, instead of xllamacpp")
    parser.add_argument("--torch", default="", help="a model file for PyTorch")
    parser.add_argument("--astra", default="", help="a model file with the type of its products")
    parser.add_argument("--contexts", type=lambda text: [int(n) for n in text.split(",")], default=[32, 1024])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if bool(args.ours) == bool(args.astra):
        parser.error("give --ours, or --astra under mpirun")
    if args.astra:
        after_astra(args)
    else:
        against_rivals(args)


if __name__ == "__main__":
    main()
