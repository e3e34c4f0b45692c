"""Embeddings of texts by all-MiniLM-L6-v2 on one core: this project, sentence-transformers and ONNX Runtime in turns.

python jobs/peers/texts.py WORK MINILM_FOLDER [--items 48] [--rounds 5]
WORK: where get.sh has put ONNX Runtime. Passages of Python's documentation, in batches of 16 and of up to 256 tokens;
making tokens is in the time. Prints and times as jobs/bench/versus.py does; JSON last, and in WORK/cells/texts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

JOBS = Path(__file__).parents[1]
sys.path.append(str(JOBS / "bench"))

from versus import Pass, compare  # noqa: E402
from versus_texts import BATCH, MAX_TOKENS, ours, theirs  # noqa: E402

from astra_mpi.device.backend import COMPUTES  # noqa: E402
from astra_mpi.device.threads import set_threads  # noqa: E402
from astra_mpi.files import whole  # noqa: E402


def export(folder: Path, path: Path) -> None:
    """The encoder with mean pooling as ONNX: ids and mask (n, t) -> unit vectors (n, D)."""
    import torch
    import transformers

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = transformers.AutoModel.from_pretrained(folder, attn_implementation="sdpa")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            rows = self.model(ids, attention_mask=mask).last_hidden_state
            total = (rows * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
            return torch.nn.functional.normalize(total, dim=1)

    n, t = torch.export.Dim("n", min=1), torch.export.Dim("t", min=1, max=512)
    example = (torch.ones(2, 7, dtype=torch.int64), torch.ones(2, 7, dtype=torch.int64))
    shapes = {"ids": {0: n, 1: t}, "mask": {0: n, 1: t}}
    torch.onnx.export(Embedder().eval(), example, path, dynamo=True, dynamic_shapes=shapes)


def onnx_pass(path: Path, folder: Path, texts: list[str]) -> Pass:
    """One thread; texts sorted by length, as sentence-transformers does, so that little is padded."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))

    def run() -> np.ndarray:
        vectors: list[Any] = [None] * len(texts)
        for first in range(0, len(order), BATCH):
            here = order[first : first + BATCH]
            rows = tokenizer.encode_batch([texts[i] for i in here])
            ids = np.array([row.ids for row in rows], np.int64)
            mask = np.array([row.attention_mask for row in rows], np.int64)
            for i, vector in zip(here, session.run(None, dict(zip(names, (ids, mask), strict=True)))[0], strict=True):
                vectors[i] = vector
        return np.array(vectors)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.path.append(str(args.work / "python"))
    files = args.work / "files"
    prepare(files, args.folder)
    lines = [json.loads(line)["text"] for line in (files / "passages.jsonl").read_text().splitlines()]
    texts = lines[:: max(1, len(lines) // args.items)][: args.items]
    set_threads(1)
    passes = {f"ours {compute}": ours(str(files / "minilm.h5"), compute, texts) for compute in COMPUTES}
    passes |= {f"torch{kind and '-'}{kind}": theirs(str(args.folder), kind, texts) for kind in ("", "bfloat16")}
    for name, file in (("onnx", "minilm.onnx"), ("onnx-int8", "minilm-int8.onnx")):
        passes[name] = onnx_pass(files / file, args.folder, texts)
    told = compare({"model": "all-MiniLM-L6-v2", "items": len(texts)}, passes, args.rounds)
    whole.write_text(args.work / "cells" / "texts.json", json.dumps(told, indent=1) + "\n")


def prepare(files: Path, folder: Path) -> None:
    """The model in both formats, and the passages, unless they are there."""
    model, exported, narrow = files / "minilm.h5", files / "minilm.onnx", files / "minilm-int8.onnx"
    if not model.exists():
        subprocess.run(["astra-mpi", "convert", str(folder), str(model)], check=True)
    if not (files / "passages.jsonl").exists():
        words = [str(JOBS / "passages.py"), str(model), str(files / "passages.jsonl")]
        subprocess.run([sys.executable, *words], check=True)
    if not narrow.exists():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        export(folder, exported)
        quantize_dynamic(exported, narrow, weight_type=QuantType.QInt8, per_channel=True)


if __name__ == "__main__":
    main()
