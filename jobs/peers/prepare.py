"""Makes what contestants load, in WORK/files: SmolLM2-135M-Instruct in all formats, a prompt, exact answers, codebooks.

python jobs/peers/prepare.py WORK SMOLLM2.gguf [--codebooks FILE.h5] [--calibration TEXT --test TEXT]
All come from the GGUF file's weights: as float32 for this project, PyTorch and ONNX Runtime, requantised to Q8_0 and
BF16 by llama.cpp. `calibrate` makes codebooks of 92 bits as jobs/accuracy/language.py does, in 7 CPU minutes each: for
weights in float32, unless --codebooks has some, and in Q8_0. Texts: Python's documentation, in two parts; the prompt
begins the second, on which the perplexity of this project's contestants on four nodes is measured. distributed-llama's
files come where get.sh has built it. What is there already is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from perplexity import perplexities
from run_dllama import TOKENIZER, make_files

from astra_mpi.files import whole
from astra_mpi.files.modelfile import read_model
from astra_mpi.inputs.text import tokenizer_of

JOBS = Path(__file__).parents[1]
LENGTHS = (256, 1024, 4096)
NEW = 17  # tokens after a prompt that are compared
MADE = "half 92"  # which of the codebooks of jobs/accuracy/language.py


def run(*words: Any) -> None:
    subprocess.run([str(word) for word in words], check=True, stdin=subprocess.DEVNULL)


def texts(files: Path, args: argparse.Namespace) -> None:
    """calibration.txt and test.txt."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    parts = {"calibration": names[len(names) // 3 :], "test": names[: len(names) // 3]}
    for name, topics_of in parts.items():
        given = getattr(args, name)
        text = "\n\n".join(topics[topic] for topic in topics_of) if given is None else given.read_text("utf-8")
        whole.write_text(files / f"{name}.txt", text)


def prompt(files: Path) -> None:
    model = read_model(str(files / "smollm2.h5"))
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size)
    ids = tokenizer.encode_plain((files / "test.txt").read_text("utf-8")[: 12 * max(LENGTHS)], "test.txt")
    if len(ids) < max(LENGTHS):
        sys.exit(f"prepare: the test text has {len(ids)} tokens; give one of {max(LENGTHS)} at least")
    np.save(files / "prompt.npy", np.array(ids[: max(LENGTHS)], np.int32))


def folder_of_torch(files: Path) -> None:
    """The checkpoint as transformers stores it, in hf-float32 and hf-bfloat16."""
    sys.path.append(str(JOBS / "bench"))
    from versus_torch import torch_twin

    file = read_model(str(files / "smollm2.h5"))
    twin = torch_twin(file.config, {name: np.asarray(weight, np.float32) for name, weight in file.weights.items()})
    twin.save_pretrained(files / "hf-float32")
    twin.bfloat16().save_pretrained(files / "hf-bfloat16")


def exact(files: Path) -> None:
    """The likeliest tokens after each prompt, by transformers in float32."""
    from run_torch import prepare

    go_on, ids = prepare(files, {"dtype": "float32"}), np.load(files / "prompt.npy")
    whole.write_text(files / "exact.json", json.dumps({n: go_on(ids[:n], NEW)[0] for n in LENGTHS}))


def onnx_files(files: Path) -> None:
    """In float32, and with weights and activations of products in int8 as ONNX Runtime's own tool does it."""
    from run_onnx import export

    export(files / "hf-float32", files / "smollm2.onnx")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(files / "smollm2.onnx", files / "smollm2-int8.onnx", weight_type=QuantType.QInt8, per_channel=True)


def codebooks(files: Path, model: str, given: Path | None = None) -> None:
    """codebooks-MODEL, made unless given, after their perplexity on four emulated ranks, in float32."""
    row, work = MADE if given is None else f"given={given.resolve()}", files / "language" / Path(model).stem
    texts = [files / "calibration.txt", files / "test.txt"]
    told = ["--rows", row, "--emulate", "--work", work, "--threads", os.environ.get("CORES", "1")]
    run(sys.executable, JOBS / "accuracy" / "language.py", files / model, *texts, *told)
    shutil.copyfile(given or next(work.glob(f"{MADE.replace(' ', '-')}-*.h5")), files / f"codebooks-{model}")


def costs(files: Path) -> None:
    """perplexity.json: of the test text, exactly and of each contestant on four nodes; bits of the codes."""
    work = files / "language" / "smollm2"
    found = json.loads((work / "language.json").read_text())
    exact = next(one["metrics"]["perplexity"] for key, one in found.items() if key.startswith("exact|"))
    bits = max(one["bits_per_token_per_block"] for one in found.values())
    told = {"exact": exact, "bits": bits, "of": perplexities(files, work / "test.txt")}
    whole.write_text(files / "perplexity.json", json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="where get.sh has put the peers")
    parser.add_argument("gguf", type=Path, help="SmolLM2-135M-Instruct, Q4_1")
    parser.add_argument("--codebooks", type=Path, help="a file of `calibrate --codebook-only` for weights in float32")
    parser.add_argument("--calibration", type=Path, help="a text; default most of Python's documentation")
    parser.add_argument("--test", type=Path, help="another text; default the rest of it")
    args = parser.parse_args()
    files: Path = args.work / "files"
    files.mkdir(parents=True, exist_ok=True)
    sys.path.append(str(args.work / "python"))
    quantize = args.work / "llama" / "bin" / "llama-quantize"
    q4 = files / "smollm2-Q4_1.gguf"
    steps: dict[str, Callable[[], Any]] = {
        "smollm2.h5": lambda: run("astra-mpi", "convert", args.gguf, files / "smollm2.h5", "--dtype", "float32"),
        "smollm2-q8_0.h5": lambda: run("astra-mpi", "convert", args.gguf, files / "smollm2-q8_0.h5", "--dtype", "q8_0"),
        "smollm2-q4_1.h5": lambda: run("astra-mpi", "convert", args.gguf, files / "smollm2-q4_1.h5"),
        q4.name: lambda: q4.symlink_to(args.gguf.resolve()),
        **{
            f"smollm2-{kind}.gguf": lambda kind=kind: run(
                quantize, "--allow-requantize", "--pure", q4, files / f"smollm2-{kind}.gguf", kind, 1
            )
            for kind in ("Q8_0", "BF16")
        },
        "test.txt": lambda: texts(files, args),
        "prompt.npy": lambda: prompt(files),
        "hf-bfloat16": lambda: folder_of_torch(files),
        "exact.json": lambda: exact(files),
        "smollm2-int8.onnx": lambda: onnx_files(files),
        "codebooks-smollm2.h5": lambda: codebooks(files, "smollm2.h5", args.codebooks),
        "codebooks-smollm2-q8_0.h5": lambda: codebooks(files, "smollm2-q8_0.h5"),
        "perplexity.json": lambda: costs(files),
    }
    dllama = args.work / "dllama"
    if (dllama / "version").exists():
        steps[TOKENIZER] = lambda: make_files(dllama, files)
    for name, make in steps.items():
        if not (files / name).exists():
            print(f"making {files / name}", flush=True)
            make()


if __name__ == "__main__":
    main()
