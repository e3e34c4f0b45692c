"""One rank, by compute type, against what a user would take instead on one machine: one thread each, all in turns.

python jobs/bench/versus.py [--model vit|gpt2|llama|FILE.h5] [--tokens 1024] [--layers 12] [--rounds 7]
    [--compute float32,bfloat16,int8] [--gguf FILE,FILE --llama FOLDER|--llama-bench PROGRAM]
    [--rivals torch,torch-bfloat16,torch-int8,openvino,openvino-bfloat16,openvino-int8]
Random weights of ViT-Base, GPT-2 small, or a Llama of its size, or a Llama's or GPT-2's model file; one image of
`tokens` patches, or one prompt of as many tokens and the logits of its last one. PyTorch with SDPA; its int8 is
dynamic, by `quantize_dynamic`. OpenVINO, where it is installed, runs PyTorch's model; its int8 is NNCF's (package
`nncf`), with scales of activations from eight images. GGUF files are read by llama.cpp as jobs/peers/get.sh has built
it in a folder (`--llama`), or by its own `llama-bench`. Every round takes all in a random order. Times are CPU seconds,
so that they bear other work on the machine, but for `llama-bench`, which tells seconds on the clock. Prints medians and
minima in milliseconds, the ratio of ours to each rival (median over rounds), and how far logits are from PyTorch's in
float32, relative to the largest; JSON last.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from built_llama import BuiltLlama
from mpi4py import MPI
from versus_torch import config_of, torch_twin

import astra_mpi
from astra_mpi.convert.presets import random_weights
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.backend import COMPUTES
from astra_mpi.device.threads import set_threads
from astra_mpi.files.modelfile import ModelFile, read_model, write_model

RIVALS = ("torch", "torch-bfloat16", "torch-int8", "openvino", "openvino-bfloat16", "openvino-int8")
#: -> logits; a program of its own gives the seconds that it took instead
Pass = Callable[[], np.ndarray | float]


def torch_pass(model: Any, inputs: np.ndarray, kind: str, decoder: bool) -> Pass:
    """A pass of transformers' model: float32, bfloat16, or with int8 layers."""
    import torch

    if kind == "bfloat16":
        model = copy.deepcopy(model).bfloat16()
    if kind == "int8":
        model = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, torch.qint8)
    tensor = torch.from_numpy(inputs)
    tensor = tensor.bfloat16() if kind == "bfloat16" and tensor.is_floating_point() else tensor
    options = {"logits_to_keep": 1, "use_cache": False} if decoder else {}

    def run() -> np.ndarray:
        with torch.inference_mode():
            logits = model(tensor, **options).logits
        return (logits[:, -1] if decoder else logits).float().numpy()

    return run


def openvino_pass(model: Any, inputs: np.ndarray, kind: str) -> Pass:
    """The same model, converted from PyTorch's."""
    import openvino
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: Any) -> Any:
            return self.model(pixels).logits

    converted = openvino.convert_model(Logits().eval(), example_input=torch.from_numpy(inputs))
    if kind == "int8":
        import nncf

        images = [np.random.default_rng(seed).standard_normal(inputs.shape, np.float32) for seed in range(8)]
        converted = nncf.quantize(converted, nncf.Dataset(images), model_type=nncf.ModelType.TRANSFORMER)
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "bf16" if kind == "bfloat16" else "f32"}
    compiled = openvino.Core().compile_model(converted, "CPU", hints)
    return lambda: compiled([inputs])[0]


def llama_pass(program: str, gguf: str, n_tokens: int) -> Pass:
    """llama.cpp on a prompt of so many tokens, one thread."""
    command = [program, "-m", gguf, "-p", str(n_tokens), "-n", "0", "-t", "1", "-r", "1", "-o", "json"]

    def run() -> float:
        ended = subprocess.run(command, capture_output=True, check=True, text=True)
        return float(json.loads(ended.stdout)[0]["avg_ns"]) / 1e9

    return run


def built_llama_pass(work: str, gguf: str, flash: bool, ids: np.ndarray) -> Pass:
    """The same in a process that tells CPU seconds."""
    ask = BuiltLlama(work, gguf, flash).ask
    return lambda: ask(ids, 1)[1] / 1e3


def contestants(args: argparse.Namespace, path: Path, file: ModelFile, inputs: np.ndarray) -> dict[str, Pass]:
    decoder = file.config.family != "vit"
    passes: dict[str, Pass] = {}
    for compute in args.compute:
        load: Any = dict(comm=MPI.COMM_SELF, strategy="single", threads=1, compute=compute)
        model = astra_mpi.load(str(path), **load)
        passes[f"ours {compute}"] = lambda model=model: model(inputs)
    for gguf in args.gguf:
        name = f"llama.cpp {Path(gguf).stem}"
        if args.llama:
            for flash in (False, True):
                passes[f"{name}{' flash' * flash}"] = built_llama_pass(args.llama, gguf, flash, inputs[0])
        else:
            passes[name] = llama_pass(args.llama_bench, gguf, args.tokens)
    twin = torch_twin(file.config, {name: np.asarray(weight, np.float32) for name, weight in file.weights.items()})
    for name in args.rivals:
        library, _, kind = name.partition("-")
        if library == "torch":
            passes[name] = torch_pass(twin, inputs, kind, decoder)
        else:
            passes[name] = openvino_pass(twin, inputs, kind or "float32")
    passes.setdefault("torch", torch_pass(twin, inputs, "", decoder))
    return passes


def timed(passes: dict[str, Pass], rounds: int) -> dict[str, np.ndarray]:
    """Name -> CPU seconds (rounds,)."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for name in order.permutation(list(passes)):
            start_s = time.process_time()
            found = passes[name]()
            seconds[name].append(found if isinstance(found, float) else time.process_time() - start_s)
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit", help="vit, gpt2, llama, or a model file")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("--compute", **names, default=list(COMPUTES), help=",".join(COMPUTES))
    parser.add_argument("--rivals", **names, default=list(RIVALS[:3]), help=",".join(RIVALS))
    parser.add_argument("--llama-bench", default="llama-bench", help="llama.cpp's program")
    parser.add_argument("--llama", default="", help="the folder of jobs/peers/get.sh, instead")
    parser.add_argument("--gguf", **names, default=[], help="files for it")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    unknown = [name for name in args.rivals if name not in RIVALS] + [n for n in args.compute if n not in COMPUTES]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if args.model != "vit" and any(name.startswith("openvino") for name in args.rivals):
        parser.error("OpenVINO runs --model vit only")
    set_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(args.model)
        if args.model in ("vit", "gpt2", "llama"):
            path = Path(folder) / "model.h5"
            config = config_of(args.model, args.tokens, args.layers)
            write_model(path, ModelFile(config, dict(random_weights(config, 0))))
        file = read_model(str(path))
        inputs, _ = random_batch(file.config, 1, None if args.model == "vit" else args.tokens)
        passes = contestants(args, path, file, inputs)
    compare({"model": args.model, "tokens": args.tokens, "layers": args.layers}, passes, args.rounds)


def compare(settings: dict[str, Any], passes: dict[str, Pass], rounds: int) -> dict[str, Any]:
    """Of a pass each, timed in so many rounds; "torch" is exact. -> what is printed."""
    logits = {name: call() for name, call in passes.items()}  # which warms up
    exact = logits["torch"]
    seconds = timed(passes, rounds)
    rivals = [name for name in passes if not name.startswith("ours")]
    found: dict[str, Any] = {}
    width = max(map(len, passes))
    print(f"{'':{width}} {'median ms':>10} {'min':>8} {'off by':>9}  " + "  ".join(f"over {name}" for name in rivals))
    for name, values in seconds.items():
        own = logits[name]
        off = float("nan") if isinstance(own, float) else float(np.abs(own - exact).max() / np.abs(exact).max())
        ratios = {rival: round(float(np.median(values / seconds[rival])), 3) for rival in rivals}
        median_ms, min_ms = round(float(np.median(values)) * 1e3, 1), round(float(values.min()) * 1e3, 1)
        found[name] = {"median_ms": median_ms, "min_ms": min_ms, "off": off, "over": ratios}
        cells = "  ".join(f"{ratios[rival]:>{len(rival) + 5}.3f}" for rival in rivals)
        print(f"{name:{width}} {median_ms:>10} {min_ms:>8} {off:>9.1e}  {cells}")
    print(json.dumps({**settings, "found": found}))
    return {**settings, "found": found}


if __name__ == "__main__":
    main()
