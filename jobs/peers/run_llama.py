"""llama.cpp as a contestant, by the bindings in the source distribution that get.sh has built: alone, or with RPC."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

LONGEST = 4096 + 64  # tokens of a prompt and after it


def bindings(work: Path) -> Any:
    """Its functions by ctypes. The package around them needs more than is here, so it is left out."""
    os.environ["LLAMA_CPP_LIB_PATH"] = str(work / "llama" / "bin")
    package = ModuleType("llama_cpp")
    package.__path__ = [str(next(work.glob("llama_cpp_python-*/llama_cpp")))]
    sys.modules["llama_cpp"] = package
    from llama_cpp import llama_cpp

    return llama_cpp


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """-> run(ids (T,), new tokens) -> (tokens, (seconds, CPU seconds) at each).

    load["servers"]: addresses of RPC servers; they and this process get about as many blocks each.
    """
    llama = bindings(files.parent)
    quiet = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(quiet, None)
    llama.llama_backend_init()
    settings = llama.llama_model_default_params()
    servers = load.get("servers", [])
    settings.n_gpu_layers = 0
    if servers:
        add_servers(files.parent / "llama" / "bin", servers)
        n_layers = n_blocks(files / load["gguf"]) + 1  # the head counts as one
        settings.n_gpu_layers = round(n_layers * len(servers) / (len(servers) + 1))
    model = llama.llama_model_load_from_file(str(files / load["gguf"]).encode(), settings)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {files / load['gguf']}; make it anew with prepare.py")
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_threads, options.n_threads_batch = LONGEST, 1, 1
    options.flash_attn_type = int(load["flash"])
    context = llama.llama_init_from_model(model, options)
    n_words = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def step(ids: list[int]) -> int:
        """The likeliest token after these. Longer prompts than its batch are cut as its own programs do."""
        for first in range(0, len(ids), options.n_batch):
            part = (ctypes.c_int32 * len(ids[first : first + options.n_batch]))(*ids[first : first + options.n_batch])
            if llama.llama_decode(context, llama.llama_batch_get_one(part, len(part))):
                raise SystemExit("llama_decode failed")
        logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (n_words,))
        return int(logits.argmax())

    def run(ids: np.ndarray, n_new: int) -> tuple[list[int], list[tuple[float, float]]]:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        chosen, at, new = [], [], ids.tolist()
        for _ in range(n_new):
            chosen.append(step(new))
            new = chosen[-1:]
            at.append((time.perf_counter(), time.process_time()))
        return chosen, at

    run.keeps = quiet  # which the library calls
    return run


def n_blocks(gguf: Path) -> int:
    from gguf import GGUFReader

    return int(GGUFReader(gguf).fields["llama.block_count"].contents())


def add_servers(libraries: Path, servers: list[str]) -> None:
    """Their devices, as its programs do it."""
    rpc, ggml = (ctypes.CDLL(str(libraries / f"lib{name}.so")) for name in ("ggml-rpc", "ggml"))
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    ggml.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for server in servers:
        added = rpc.ggml_backend_rpc_add_server(server.encode())
        if not added:
            raise SystemExit(f"no RPC server answers at {server}")
        ggml.ggml_backend_register(added)
