"""ONNX Runtime as a contestant: one thread, keys and values handed from step to step."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np


def prepare(files: Path, load: dict[str, Any]) -> Any:
    """-> run(ids (T,), new tokens) -> (tokens, (seconds, CPU seconds) at each)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(files / load["onnx"]), options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    kept_names = [one.name for one in inputs[1:]]
    heads, d_head = inputs[1].shape[1], inputs[1].shape[3]

    def run(ids: np.ndarray, n_new: int) -> tuple[list[int], list[tuple[float, float]]]:
        chosen, at = [], []
        kept = [np.zeros((1, heads, 0, d_head), np.float32)] * len(kept_names)
        new = ids[None].astype(np.int64)
        for _ in range(n_new):
            logits, *kept = session.run(None, {inputs[0].name: new, **dict(zip(kept_names, kept, strict=True))})
            chosen.append(int(logits[0].argmax()))
            new = np.array([chosen[-1:]], np.int64)
            at.append((time.perf_counter(), time.process_time()))
        return chosen, at

    return run
