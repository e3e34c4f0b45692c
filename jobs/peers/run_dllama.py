"""distributed-llama as a contestant: model files by its own converters, and its steps by dllama_steps.cpp."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

LONGEST = 4096 + 64  # tokens of a prompt and after it
TOKENIZER = "dllama.t"


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """-> run(ids (T,), new tokens) -> (tokens, (seconds, CPU seconds) at each).

    load["servers"]: addresses of its workers, which get as many heads and columns as this process each.
    """
    library = ctypes.CDLL(str(files.parent / "dllama" / "dllama_steps.so"))
    library.dllama_load.restype = ctypes.c_bool
    words = ["--model", str(files / load["dllama"]), "--tokenizer", str(files / TOKENIZER), "--nthreads", "1"]
    words += ["--buffer-float-type", "q80", "--max-seq-len", str(LONGEST), "--temperature", "0"]
    if servers := load.get("servers", []):
        # sockets that wait, here and on the workers: to ask all the time takes half a core from who computes
        words += ["--net-turbo", "0", "--workers", *servers]
    options = (ctypes.c_char_p * (1 + len(words)))(b"dllama", *(word.encode() for word in words))
    if not library.dllama_load(len(options), options):
        raise SystemExit("distributed-llama has not loaded; the lines above say why")

    def run(ids: np.ndarray, n_new: int) -> tuple[list[int], list[tuple[float, float]]]:
        chosen, at, new, position = [], [], ids.tolist(), 0
        for _ in range(n_new):
            chosen.append(library.dllama_step((ctypes.c_int * len(new))(*new), len(new), position))
            position, new = position + len(new), chosen[-1:]
            at.append((time.perf_counter(), time.process_time()))
        return chosen, at

    run.keeps = options  # which the library reads
    return run


def make_files(sources: Path, files: Path) -> None:
    """SmolLM2 in Q40 as it is and, for four nodes, with heads of zeros; a tokenizer file.

    Its programs need as many key heads as nodes. Heads of zeros change no answer, and add a third to the attention.
    """
    for n_kv_heads, n_nodes in ((3, 1), (4, 4)):
        with tempfile.TemporaryDirectory(dir=files) as folder:
            padded(files / "hf-float32", Path(folder), n_kv_heads)
            convert = [sys.executable, str(sources / "converter" / "convert-hf.py"), folder, "q40", f"dllama-{n_nodes}"]
            subprocess.run(convert, cwd=files, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    tokenizer(sources, files)


def padded(folder: Path, out: Path, n_kv_heads: int) -> None:
    """A Llama's checkpoint folder with key heads, and their query heads, of zeros at the end."""
    from safetensors.numpy import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    before, d_head = config["num_key_value_heads"], config["head_dim"]
    group = config["num_attention_heads"] // before
    more = (n_kv_heads - before) * d_head
    config |= {"num_key_value_heads": n_kv_heads, "num_attention_heads": group * n_kv_heads}
    config["rope_theta"] = config["rope_parameters"]["rope_theta"]  # where its converter looks for it
    weights = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        part = name.split(".")[-2]
        rows = more * {"q_proj": group, "k_proj": 1, "v_proj": 1}.get(part, 0)
        columns = more * group * (part == "o_proj")
        weights[name] = np.pad(weight, [(0, rows), (0, columns)][: weight.ndim])
    (out / "config.json").write_text(json.dumps(config))
    save_file(weights, out / "model.safetensors")


def tokenizer(sources: Path, files: Path) -> None:
    """A word of four digits for each token: its programs need a file, and read the same tokens from such words."""
    n_words = json.loads((files / "hf-float32" / "config.json").read_text())["vocab_size"]
    sys.path.append(str(sources / "converter"))
    words, last = [f"{i:04x}".encode() for i in range(n_words)], n_words - 1
    with (files / TOKENIZER).open("wb") as file:
        import_module("tokenizer-writer").writeTokenizer(file, words, [0.0] * n_words, None, last, False, [last])
