"""One rank against PyTorch: the same ViT in `single` and in transformers (SDPA), one thread each, A B A B.

python jobs/versus_torch.py [--tokens 1024] [--layers 12] [--pairs 7]
Random ViT-Base weights, one image of `tokens` patches. Prints medians in milliseconds, the ratio, and both spreads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.modelfile import ModelFile, write_model
from astra_mpi.models import ViT
from astra_mpi.presets import preset_config, random_weights
from astra_mpi.threads import set_threads


def torch_twin(config, weights):
    """transformers' ViTForImageClassification with the same weights."""
    import torch
    import transformers

    hf = transformers.ViTConfig(
        hidden_size=config.d_model,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        intermediate_size=config.d_ff,
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_labels=config.n_classes,
        layer_norm_eps=config.norm_eps,
    )
    torch.set_num_threads(1)
    model = transformers.ViTForImageClassification._from_config(hf, attn_implementation="sdpa").eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        from safetensors.numpy import load_file, save_file

        path = Path(folder) / "model.safetensors"
        stored = load_file(path)
        for name, source in ViT.hf_weights(config).items():
            key = source.name if source.name in stored else ViT.hf_prefix + source.name
            array = weights[name].T if name.endswith(".weight") and weights[name].ndim == 2 else weights[name]
            stored[key] = np.ascontiguousarray(array.reshape(stored[key].shape))
        save_file(stored, path, metadata={"format": "pt"})
        return transformers.ViTForImageClassification.from_pretrained(folder, attn_implementation="sdpa").eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    import torch

    set_threads(1)
    config = dataclasses.replace(preset_config("vit-base", args.tokens), n_layers=args.layers)
    weights = random_weights(config, 0)
    rival = torch_twin(config, weights)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model.h5", ModelFile(config, weights))
        model = astra_mpi.load(f"{folder}/model.h5", comm=MPI.COMM_SELF, strategy="single", threads=1)
    image = np.random.default_rng(0).standard_normal((1, 3, *config.image_size), dtype=np.float32)
    tensor = torch.from_numpy(image)

    def ours() -> np.ndarray:
        return model(image)

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            return rival(tensor).logits.numpy()

    difference = float(np.abs(ours() - theirs()).max())
    seconds = {"ours": [], "torch": []}
    for _ in range(args.pairs):
        for name, call in (("ours", ours), ("torch", theirs)):
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    milliseconds = {name: np.array(values) * 1e3 for name, values in seconds.items()}
    result = {f"{name}_ms": round(float(np.median(values)), 1) for name, values in milliseconds.items()}
    result |= {f"{name}_min_ms": round(float(values.min()), 1) for name, values in milliseconds.items()}
    result["ratio"] = round(float(np.median(milliseconds["ours"] / milliseconds["torch"])), 3)
    latency = model.report["latency_s"]
    phases = {name: round(value * 1e3, 1) for name, value in latency["phases"].items() if value > 1e-4}
    print(json.dumps({**result, "max_difference": difference, "phases_ms": phases, "tokens": args.tokens}))


if __name__ == "__main__":
    main()
