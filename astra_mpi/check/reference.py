"""The source of a conversion as transformers reads it, its weights rounded as the model file stores them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.check.findings import relative, tolerance
from astra_mpi.errors import InputError
from astra_mpi.hf_settings import sentence_modules
from astra_mpi.modelfile import ModelFile

_INSTALL = "pip install torch 'transformers>=5'"
Outputs = dict[str, np.ndarray]


@dataclass
class Reference:
    """A model of transformers, and what it belongs to."""

    source: Path  # folder or checkpoint
    folder: Path  # that has the model, tokenizer and image processor; of a llama2.c checkpoint the one it is in
    model: Any  # torch.nn.Module
    dtype: str  # what the model file stores
    is_folder: bool = True

    def outputs(self, forward: Callable[[Any], Outputs]) -> tuple[Outputs, float, Outputs | None]:
        """-> (`forward`'s arrays by name, in float64 with rounded weights; tolerance; those of weights not rounded).

        forward(model) gives arrays by name. The last is None where the file stores float32.
        """
        import torch

        with torch.no_grad():
            exact = None
            if self.dtype != "float32" and not self.is_rounded:
                exact = forward(self.model.double())
                round_weights(self.model.float(), self.dtype)
                self.is_rounded = True
            single = forward(self.model.float())
            double = forward(self.model.double())
        own = max((relative(single[name], array)[1] for name, array in double.items()), default=0.0)
        return double, tolerance(own), exact

    is_rounded = False


def load_reference(source: Path, model: ModelFile) -> Reference:
    """InputError if transformers or PyTorch are missing, or cannot read the source."""
    transformers = _libraries()
    if source.is_file():
        from astra_mpi.check.llama2c import reference_of

        return Reference(source, source.parent, reference_of(source), model.stored_dtype, is_folder=False)
    folder = sentence_modules(source).get("Transformer", source)
    kind = {"bert": "AutoModel", "vit": "AutoModelForImageClassification"}.get(
        model.config.family, "AutoModelForCausalLM"
    )
    if model.config.family == "vit" and not model.config.n_classes:
        kind = "AutoModel"
    with _quiet(transformers):
        try:
            reference = getattr(transformers, kind).from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
            )
        except Exception as exc:  # the library raises what it likes
            said = f"{type(exc).__name__}: {next(iter(str(exc).splitlines()), '')}"
            raise InputError(f"transformers cannot read {folder} ({said}); convert without --check") from exc
    return Reference(source, folder, reference.eval().float(), model.stored_dtype)


def require_libraries() -> None:
    """InputError, with the command that installs them, if transformers or PyTorch are missing."""
    _libraries()


def _libraries() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported: nothing is asked of the network
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as exc:
        raise InputError(f"--check needs transformers and PyTorch ({exc.name} is missing); {_INSTALL}") from exc
    transformers.utils.logging.set_verbosity_error()
    return transformers


class _quiet:
    """Without the library's bars of progress, which other code of this process may want."""

    def __init__(self, transformers: Any) -> None:
        self.logging = transformers.utils.logging

    def __enter__(self) -> None:
        self.was = self.logging.is_progress_bar_enabled()
        self.logging.disable_progress_bar()

    def __exit__(self, *_: Any) -> None:
        if self.was:
            self.logging.enable_progress_bar()


def round_weights(model: Any, dtype: str) -> None:
    """Round a float32 torch model in place to `dtype` as docs/storage.md says; independent of `astra_mpi.weights`."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if dtype in ("float16", "bfloat16"):
        for name, weight in model.named_parameters():
            is_matrix = weight.ndim > 1 and not name.endswith("cls_token")
            if is_matrix:
                weight.data = weight.data.to(getattr(torch, dtype)).float()
        return
    words = model.get_input_embeddings()
    done: set[int] = set()  # a head may share the embedding's weight
    for module in model.modules():
        is_linear = isinstance(module, torch.nn.Linear | torch.nn.Conv2d | Conv1D)
        is_words = module is words and isinstance(module, torch.nn.Embedding)
        if not (is_linear or is_words) or id(module.weight) in done:
            continue
        done.add(id(module.weight))
        weight = module.weight.data
        axes = (0,) if isinstance(module, Conv1D) else tuple(range(1, weight.ndim))  # all but the layer's outputs
        scale = weight.abs().amax(dim=axes, keepdim=True) / 127
        scale[scale < torch.finfo(torch.float32).tiny] = 1
        module.weight.data = torch.round(weight / scale) * scale
