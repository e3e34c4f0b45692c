"""One rank against PyTorch: the same model in `single` and in transformers (SDPA), one thread each, A B A B.

python jobs/bench/versus_torch.py [--model vit|gpt2|llama] [--decode] [--tokens 1024] [--layers 12]
    [--new 32] [--pairs 7]
Random weights of ViT-Base, GPT-2 small, or a Llama of its size; one image of `tokens` patches, or one prompt of as many
tokens. A pass, for decoders the logits of the last token only; with --decode, greedy generation of `new` tokens after
the prompt, transformers with its cache: both the prompt's time and that per token. --dtype: storage of our weights (the
rival's are float32). Prints medians in milliseconds, the ratio (median over pairs), and the fastest of each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import astra_mpi
from astra_mpi.convert.presets import preset_config, random_weights
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.device.formats import DTYPES
from astra_mpi.device.threads import set_threads
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.models import FAMILIES


def config_of(name: str, n_tokens: int, n_layers: int) -> Any:
    """The shape, with room for new tokens."""
    if name == "vit":
        return dataclasses.replace(preset_config("vit-base", n_tokens), n_layers=n_layers)
    config = preset_config({"gpt2": "gpt2", "llama": "llama-tiny"}[name], n_tokens + 256)
    if name == "llama":  # about as many multiply-adds as GPT-2 small
        config = dataclasses.replace(config, d_model=768, n_heads=12, n_kv_heads=4, d_ff=2048)
    return dataclasses.replace(config, n_layers=n_layers)


def twin_config(config: Any) -> tuple[Any, Any]:
    """-> (class, config) of transformers for the same model."""
    import transformers as hf

    if config.family == "vit":
        return hf.ViTForImageClassification, hf.ViTConfig(
            hidden_size=config.d_model,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            intermediate_size=config.d_ff,
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_labels=config.n_classes,
            layer_norm_eps=config.norm_eps,
        )
    ends = dict(bos_token_id=0, eos_token_id=None)
    if config.family == "gpt2":
        return hf.GPT2LMHeadModel, hf.GPT2Config(
            n_embd=config.d_model,
            n_head=config.n_heads,
            n_layer=config.n_layers,
            n_positions=config.max_positions,
            vocab_size=config.vocab_size,
            layer_norm_epsilon=config.norm_eps,
            tie_word_embeddings=config.tied,
            **ends,
        )
    return hf.LlamaForCausalLM, hf.LlamaConfig(
        hidden_size=config.d_model,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        num_hidden_layers=config.n_layers,
        intermediate_size=config.d_ff,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_eps,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tied,
        **ends,
    )


def torch_twin(config: Any, weights: Any) -> Any:
    """transformers' model with the same weights."""
    import torch
    from safetensors.numpy import load_file, save_file

    torch.set_num_threads(1)
    kind, settings = twin_config(config)
    model = kind._from_config(settings, attn_implementation="sdpa").eval()
    family: Any = FAMILIES[config.family]
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        path = Path(folder) / "model.safetensors"
        stored = load_file(path)
        joined: dict[str, dict[int, np.ndarray]] = {}
        for name, source in family.hf_weights(config).items():
            key = source.name if source.name in stored else family.hf_prefix + source.name
            linear = name.endswith(".weight") and weights[name].ndim == 2 and not source.in_out
            joined.setdefault(key, {})[source.part] = weights[name].T if linear else weights[name]
        for key, parts in joined.items():
            array = np.concatenate([parts[i] for i in sorted(parts)], axis=-1) if len(parts) > 1 else parts[0]
            stored[key] = np.ascontiguousarray(array.reshape(stored[key].shape))
        save_file(stored, path, metadata={"format": "pt"})
        return kind.from_pretrained(folder, attn_implementation="sdpa").eval()


def passes(model: Model, rival: Any, inputs: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    import torch

    tensor = torch.from_numpy(inputs)
    last = {} if model.config.family == "vit" else {"logits_to_keep": 1, "use_cache": False}

    def theirs() -> np.ndarray:
        with torch.inference_mode():
            logits = rival(tensor, **last).logits
        return (logits[:, -1] if last else logits).numpy()

    return {"ours": lambda: model(inputs), "torch": theirs}


def decoding(model: Model, rival: Any, ids: np.ndarray, n_new: int) -> dict[str, Callable[[], tuple[float, float]]]:
    """Each gives seconds to the first token and per token after it."""
    import torch

    said: dict[str, list[int]] = {}

    def ours() -> tuple[float, float]:
        times: list[float] = []
        start = time.perf_counter()
        new = model.generate(ids, max_new_tokens=n_new, on_tokens=lambda step, ids: times.append(time.perf_counter()))
        said["ours"] = new[0].tolist()
        return times[0] - start, (times[-1] - times[0]) / (n_new - 1)

    def theirs() -> tuple[float, float]:
        tokens, cache, chosen = torch.from_numpy(ids), None, []
        start = time.perf_counter()
        with torch.inference_mode():
            for step in range(n_new):
                out = rival(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, tokens = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
                chosen.append(int(tokens))
                if not step:
                    first = time.perf_counter()
        said["torch"] = chosen
        assert len(said["ours"]) == n_new and said["ours"][0] == chosen[0], said
        return first - start, (time.perf_counter() - first) / (n_new - 1)

    return {"ours": ours, "torch": theirs}


def compared(seconds: dict[str, list[float]], name: str) -> dict[str, float]:
    ms = {who: np.array(values[1:]) * 1e3 for who, values in seconds.items()}  # the first pair warms up
    found = {f"{who}_{name}_ms": round(float(np.median(values)), 2) for who, values in ms.items()}
    found |= {f"{who}_{name}_min_ms": round(float(values.min()), 2) for who, values in ms.items()}
    return found | {f"{name}_ratio": round(float(np.median(ms["ours"] / ms["torch"])), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("vit", "gpt2", "llama"), default="vit")
    parser.add_argument("--decode", action="store_true", help="generate after the prompt, with gpt2 or llama")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--new", type=int, default=32, help="tokens to generate")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args()
    if args.decode and args.model == "vit":
        parser.error("--decode is for decoders")
    set_threads(1)
    config = config_of(args.model, args.tokens, args.layers)
    weights = dict(random_weights(config, 0))
    rival = torch_twin(config, weights)
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model.h5", ModelFile(config, weights, stored_dtype=args.dtype))
        model = astra_mpi.load(f"{folder}/model.h5", comm=MPI.COMM_SELF, strategy="single", threads=1)
    inputs, _ = random_batch(config, 1, None if args.model == "vit" else args.tokens)
    calls = passes(model, rival, inputs)
    result = {"max_difference": float(np.abs(calls["ours"]() - calls["torch"]()).max())}
    seconds: dict[str, dict[str, list[float]]] = {}
    timed: Any = decoding(model, rival, inputs, args.new) if args.decode else calls
    for _ in range(args.pairs + 1):
        for who, call in timed.items():
            start = time.perf_counter()
            found = call()
            laps = {"first": found[0], "token": found[1]} if args.decode else {"pass": time.perf_counter() - start}
            for name, lap in laps.items():
                seconds.setdefault(name, {}).setdefault(who, []).append(lap)
    for name, laps in seconds.items():
        result |= compared(laps, name)
    latency = model.report["latency_s"]
    phases = {name: round(value * 1e3, 1) for name, value in latency["phases"].items() if value > 1e-4}
    settings = {"model": args.model, "tokens": args.tokens, "layers": args.layers, "dtype": args.dtype}
    print(json.dumps({**settings, **result, "phases_ms": phases}))


if __name__ == "__main__":
    main()
