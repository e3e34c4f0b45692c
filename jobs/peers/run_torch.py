"""transformers' model on PyTorch as a contestant: on one node, or cut over the nodes by tensor parallelism on gloo."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from shares import shares
from torch import nn


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """Collective. -> run(ids (T,), new tokens) -> (tokens, (seconds, CPU seconds) at each)."""
    import transformers

    torch.set_num_threads(1)
    kind: dict[str, Any] = {"dtype": getattr(torch, load["dtype"]), "attn_implementation": "sdpa"}
    model = transformers.AutoModelForCausalLM.from_pretrained(files / f"hf-{load['dtype']}", **kind).eval()
    if load.get("tp"):
        dist.init_process_group("gloo", rank=int(os.environ["PMI_RANK"]), world_size=int(os.environ["PMI_SIZE"]))
        cut(model)

    def run(ids: np.ndarray, n_new: int) -> tuple[list[int], list[tuple[float, float]]]:
        chosen, at = [], []
        new, past = torch.from_numpy(ids[None].astype(np.int64)), None
        with torch.inference_mode():
            for _ in range(n_new):
                out = model(new, past_key_values=past, use_cache=True, logits_to_keep=1)
                new, past = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
                chosen.append(int(new))
                at.append((time.perf_counter(), time.process_time()))
        return chosen, at

    return run


class Nothing(nn.Module):
    """Attention of a rank without heads: it only takes part in the sum."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        zeros = torch.zeros_like(hidden_states)
        dist.all_reduce(zeros)
        return zeros, None


def cut(model: Any) -> None:
    """Leaves this rank its heads and its part of every MLP; their results are summed up over ranks."""
    config, rank = model.config, dist.get_rank()
    d_head = config.hidden_size // config.num_attention_heads
    sizes = (config.num_attention_heads, config.num_key_value_heads, config.hidden_size, config.intermediate_size)
    all_shares = shares(*sizes, d_head, dist.get_world_size())
    n_heads, n_columns = all_shares[rank]
    first_head = sum(heads for heads, _ in all_shares[:rank])
    first_column = sum(columns for _, columns in all_shares[:rank])
    group = config.num_attention_heads // config.num_key_value_heads
    keys = slice(first_head * d_head, (first_head + n_heads) * d_head)
    queries = slice(group * keys.start, group * keys.stop)
    columns = slice(first_column, first_column + n_columns)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight = nn.Parameter(linear.weight[columns].clone(), requires_grad=False)
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, columns].clone(), requires_grad=False)
        mlp.down_proj.register_forward_hook(summed)
        if not n_heads:
            layer.self_attn = Nothing()
            continue
        for linear, rows in ((attention.q_proj, queries), (attention.k_proj, keys), (attention.v_proj, keys)):
            linear.weight = nn.Parameter(linear.weight[rows].clone(), requires_grad=False)
        attention.o_proj.weight = nn.Parameter(attention.o_proj.weight[:, queries].clone(), requires_grad=False)
        attention.o_proj.register_forward_hook(summed)


def summed(_: nn.Module, __: Any, part: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(part)
    return part
