"""Who is measured: this project and its peers, on one node and on four.

A contestant is a process on every node that it takes (worker.py), told by `load` what to load and by `call` how to go
on. Files are named as prepare.py makes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

OURS, LLAMA, TORCH, ONNX, DLLAMA = "this project", "llama.cpp", "PyTorch", "ONNX Runtime", "distributed-llama"
NODES = 4


@dataclass(frozen=True, eq=False)
class Contestant:
    name: str  # in results and on the command line
    peer: str  # OURS or whose it is
    title: str  # in tables
    load: dict[str, Any]
    nodes: int = 1
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def process(self) -> str:
        """The contestants of one process have it in common."""
        return "-".join([self.peer, str(self.nodes), *(f"{key}={value}" for key, value in sorted(self.load.items()))])


def _ours(name: str, title: str, model: str, compute: str, **options: Any) -> Contestant:
    return Contestant(name, OURS, title, {"model": model, "compute": compute, "strategy": "single", **options})


def _shared(name: str, title: str, strategy: str, compute: str, decode: str = "local", **options: Any) -> Contestant:
    load = {"model": "smollm2.h5", "compute": compute, "strategy": strategy} | options
    if strategy == "astra":  # codebooks belong to the weights that they were fitted to
        load |= {"codebooks": f"codebooks-{load['model']}"}
    return Contestant(name, OURS, title, load, NODES, {"decode": decode})


def _llama(name: str, title: str, gguf: str, flash: bool) -> Contestant:
    return Contestant(name, LLAMA, title, {"gguf": gguf, "flash": flash})


def _dllama(name: str, title: str, nodes: int, **options: Any) -> Contestant:
    """Its converter names the file so, which run_dllama.py lets it make."""
    return Contestant(name, DLLAMA, title, {"dllama": f"dllama_model_dllama-{nodes}_q40.m"} | options, nodes)


CONTESTANTS = (
    _ours("ours-float32", "float32", "smollm2.h5", "float32"),
    _ours("ours-bfloat16", "bfloat16", "smollm2.h5", "bfloat16"),
    _ours("ours-int8", "int8", "smollm2.h5", "int8"),
    _ours("ours-q8_0", "Q8_0 weights, int8", "smollm2-q8_0.h5", "int8"),
    _ours("ours-q4_1", "Q4_1 weights, int8", "smollm2-q4_1.h5", "int8"),
    _llama("llama-q8_0", "Q8_0", "smollm2-Q8_0.gguf", False),
    _llama("llama-q8_0-flash", "Q8_0, flash attention", "smollm2-Q8_0.gguf", True),
    _llama("llama-q4_1", "Q4_1", "smollm2-Q4_1.gguf", False),
    _llama("llama-q4_1-flash", "Q4_1, flash attention", "smollm2-Q4_1.gguf", True),
    _llama("llama-bf16", "BF16", "smollm2-BF16.gguf", False),
    _llama("llama-bf16-flash", "BF16, flash attention", "smollm2-BF16.gguf", True),
    Contestant("torch-float32", TORCH, "float32", {"dtype": "float32"}),
    Contestant("torch-bfloat16", TORCH, "bfloat16", {"dtype": "bfloat16"}),
    Contestant("onnx-float32", ONNX, "float32", {"onnx": "smollm2.onnx"}),
    Contestant("onnx-int8", ONNX, "dynamic int8", {"onnx": "smollm2-int8.onnx"}),
    _dllama("dllama-q40", "Q40 weights", 1),
    _shared("ours-astra", "`astra`, bfloat16", "astra", "bfloat16"),
    _shared("ours-astra-merged", "`astra`, bfloat16, decoding merged", "astra", "bfloat16", "merged"),
    _shared("ours-astra-int8", "`astra`, int8", "astra", "int8"),
    _shared("ours-astra-q8_0", "`astra`, Q8_0 weights, int8", "astra", "int8", model="smollm2-q8_0.h5"),
    _shared("ours-sp", "`sp:kv:int8`, bfloat16", "sp:kv:int8", "bfloat16"),
    _shared("ours-sp-q8_0", "`sp:kv:int8`, Q8_0 weights, int8", "sp:kv:int8", "int8", model="smollm2-q8_0.h5"),
    _shared("ours-stages", "stages of blocks, bfloat16", "single", "bfloat16", grid=f"1x{NODES}x1"),
    Contestant("llama-rpc", LLAMA, "RPC, Q8_0", {"gguf": "smollm2-Q8_0.gguf", "flash": True, "servers": True}, NODES),
    Contestant("torch-tp", TORCH, "tensor parallelism, bfloat16", {"dtype": "bfloat16", "tp": True}, NODES),
    _dllama("dllama-q40-tp", "tensor parallelism, Q40 weights", NODES, servers=True),
)
BY_NAME = {one.name: one for one in CONTESTANTS}


def of_encoder(encoder: str) -> list[Contestant]:
    """Those of encoders.py, whose files run_encoder.py makes: on one node, then on four."""

    def ours(name: str, title: str, strategy: str, compute: str, nodes: int) -> Contestant:
        return Contestant(name, OURS, title, {"encoder": encoder, "strategy": strategy, "compute": compute}, nodes)

    def peer(name: str, peer: str, title: str, key: str, value: str) -> Contestant:
        return Contestant(name, peer, title, {"encoder": encoder, key: value})

    computes = ("float32", "bfloat16", "int8")
    return [
        *(ours(f"ours-{compute}", compute, "single", compute, 1) for compute in computes),
        *(peer(f"torch-{dtype}", TORCH, dtype, "dtype", dtype) for dtype in computes[:2]),
        peer("onnx-float32", ONNX, "float32", "onnx", f"{encoder}.onnx"),
        peer("onnx-int8", ONNX, "dynamic int8", "onnx", f"{encoder}-int8.onnx"),
        *(ours(f"ours-astra-{compute}", f"`astra`, {compute}", "astra", compute, NODES) for compute in computes),
        ours("ours-sp", "`sp`, bfloat16", "sp", "bfloat16", NODES),
        ours("ours-sp-int8", "`sp:int8`, bfloat16", "sp:int8", "bfloat16", NODES),
    ]
