"""A pass of an encoder as a contestant, by this project, PyTorch or ONNX Runtime: ViT-Base of two sizes, and MiniLM.

The shapes of ViT-Base have random weights; both sizes and MiniLM have codebooks of 32 bits. An input is one image, or
one text of 256 tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

JOBS = Path(__file__).parents[1]
MINILM, MINILM_TOKENS = "minilm-256", 256
PATCHES = {"vit-196": 196, "vit-1024": 1024}  # of 16 x 16 pixels; a class token comes on top
ENCODERS = (*PATCHES, MINILM)


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """Collective. -> run(anything, passes) -> (answer, (seconds, CPU seconds) after each)."""
    inputs = np.load(files / f"{load['encoder']}-input.npy")
    makers = {"compute": by_ours, "dtype": by_torch, "onnx": by_onnx}
    one_pass = next(make for key, make in makers.items() if key in load)(files, load, inputs)

    def run(_: np.ndarray, n_passes: int) -> tuple[list[float], list[tuple[float, float]]]:
        at = []
        for _ in range(n_passes):
            answer = one_pass()
            at.append((time.perf_counter(), time.process_time()))
        return answer[0].tolist(), at

    return run


def by_ours(files: Path, load: dict[str, Any], inputs: np.ndarray) -> Callable[[], np.ndarray]:
    from mpi4py import MPI

    import astra_mpi

    options: Any = {"strategy": load["strategy"], "compute": load["compute"], "threads": 1}
    model = astra_mpi.load(str(files / f"{load['encoder']}.h5"), comm=MPI.COMM_WORLD, **options)
    return lambda: model(inputs)


def by_torch(files: Path, load: dict[str, Any], inputs: np.ndarray) -> Callable[[], np.ndarray]:
    import torch

    torch.set_num_threads(1)
    kind = getattr(torch, load["dtype"])
    model = torch_encoder(files / f"{load['encoder']}-hf", kind)
    tensor = torch.from_numpy(inputs)
    tensor = tensor.to(kind) if tensor.is_floating_point() else tensor

    def one_pass() -> np.ndarray:
        with torch.inference_mode():
            return model(tensor).float().numpy()

    return one_pass


def by_onnx(files: Path, load: dict[str, Any], inputs: np.ndarray) -> Callable[[], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(files / load["onnx"]), options, providers=["CPUExecutionProvider"])
    fed = {session.get_inputs()[0].name: inputs}
    return lambda: session.run(None, fed)[0]


def torch_encoder(folder: Path, kind: Any) -> Any:
    """transformers' model: images -> logits (1, classes), or ids (1, t) -> the mean of their rows, of length 1."""
    import torch
    import transformers

    images = json.loads((folder / "config.json").read_text())["model_type"] == "vit"
    auto = transformers.AutoModelForImageClassification if images else transformers.AutoModel

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = auto.from_pretrained(folder, dtype=kind, attn_implementation="sdpa")

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            if images:
                return self.model(inputs).logits
            return torch.nn.functional.normalize(self.model(inputs).last_hidden_state.mean(dim=1), dim=1)

    return Encoder().eval()


def make_files(files: Path, folder: Path, name: str) -> None:
    """What contestants of an encoder load, an input and PyTorch's answer in float32. What is there already is kept.

    folder: MiniLM's; files/minilm.h5 and files/passages.jsonl are there.
    """
    model, twin, exact, narrow = (files / f"{name}{end}" for end in (".h5", "-hf", "-exact.npy", "-int8.onnx"))
    if not model.exists():
        make = ["init", "vit-base", model, "--tokens", PATCHES.get(name)]
        if name == MINILM:
            passages = files / "passages.jsonl"
            make = ["calibrate", files / "minilm.h5", "--data", passages, "-o", model, "--samples", 8192]
        subprocess.run(["astra-mpi", *map(str, make)], check=True, stdin=subprocess.DEVNULL)
    if not exact.exists():
        inputs = twin_and_input(model, twin, files / "passages.jsonl", folder if name == MINILM else None)
        np.save(files / f"{name}-input.npy", inputs)
        np.save(exact, by_torch(files, {"encoder": name, "dtype": "float32"}, inputs)())
    if not narrow.exists():
        export(twin, np.load(files / f"{name}-input.npy"), files / f"{name}.onnx", narrow)


def twin_and_input(model: Path, twin: Path, passages: Path, folder: Path | None) -> np.ndarray:
    """`twin` becomes transformers' folder of the same weights -> an input: ids of `passages`, or a random image."""
    from astra_mpi.convert.synthetic import random_batch
    from astra_mpi.files.modelfile import read_model
    from astra_mpi.inputs.text import tokenizer_of

    file = read_model(str(model))
    if folder is None:
        sys.path.append(str(JOBS / "bench"))
        from versus_torch import torch_twin

        weights = {name: np.asarray(weight, np.float32) for name, weight in file.weights.items()}
        torch_twin(file.config, weights).save_pretrained(twin)
        return random_batch(file.config, 1)[0]
    if not twin.exists():
        twin.symlink_to(folder.resolve())
    tokenizer = tokenizer_of(file.tokenizer, file.config.vocab_size, preprocess=file.preprocess, prompt=None)
    lines = passages.read_text().splitlines()[:MINILM_TOKENS]
    row = tokenizer.encode([" ".join(json.loads(line)["text"] for line in lines)], MINILM_TOKENS)[0]
    return np.array([row], np.int64)


def export(folder: Path, inputs: np.ndarray, path: Path, narrow: Path) -> None:
    """As ONNX files for inputs of this shape: float32, and int8 as ONNX Runtime's own tool makes it."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = torch_encoder(folder, torch.float32)
    torch.onnx.export(model, (torch.from_numpy(inputs),), path, dynamo=True)
    quantize_dynamic(path, narrow, weight_type=QuantType.QInt8, per_channel=True)
