"""The source of a conversion as transformers reads it, its weights rounded as the model file stores them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.convert.check.findings import Finding, relative, tolerance
from astra_mpi.convert.sentence import MODULES, read_encoder
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile

_INSTALL, _SENTENCES = "pip install torch 'transformers>=5'", "'sentence-transformers>=6'"
INSTALL_SENTENCES = f"pip install {_SENTENCES}"
#: nothing is downloaded, no code of the folder and no pickle is run
SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
Outputs = dict[str, np.ndarray]


@dataclass
class Reference:
    """A model of transformers, and what it belongs to."""

    source: Path  # folder or checkpoint
    folder: Path  # that has the model, tokenizer and image processor; of a llama2.c checkpoint the one it is in
    model: Any  # torch.nn.Module
    dtype: str  # what the model file stores
    is_folder: bool = True
    is_rounded: bool = False  # whether `model` has its weights in `dtype` already

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


def load_reference(source: Path, model: ModelFile) -> Reference:
    """InputError if transformers or PyTorch are missing, or cannot read the source."""
    transformers = _libraries(source)
    if source.is_file():
        from astra_mpi.convert.check.llama2c import reference_of

        return Reference(source, source.parent, reference_of(source), model.stored_dtype, is_folder=False)
    encoder = read_encoder(source)
    folder = source if encoder is None else encoder.transformer
    kind = _auto_class(model.config)
    with quiet(), reads(str(folder)):
        reference = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager", **SAFE)
    return Reference(source, folder, reference.eval().float(), model.stored_dtype)


def _auto_class(config: Any) -> str:
    """Of transformers, with the head that the model file has."""
    images, texts = config.family == "vit", hasattr(config, "pooling")
    if not (images or texts):
        return "AutoModelForCausalLM"
    if not config.n_classes:
        return "AutoModel"
    return "AutoModelForImageClassification" if images else "AutoModelForSequenceClassification"


def require_libraries(source: Path) -> None:
    """InputError, with the command that installs them, if transformers or PyTorch are missing."""
    _libraries(source)


def _libraries(source: Path) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported: nothing is asked of the network
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as exc:
        install = f"{_INSTALL} {_SENTENCES}" if (source / MODULES).is_file() else _INSTALL
        raise InputError(f"--check needs transformers and PyTorch ({exc.name} is missing); {install}") from exc
    transformers.utils.logging.set_verbosity_error()
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' bars of progress, which other code of this process may want."""
    from transformers.utils import logging

    was = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was:
            logging.enable_progress_bar()


@contextmanager
def reads(what: str, library: str = "transformers") -> Iterator[None]:
    """Whatever the library raises as InputError: without its answer there is no check."""
    try:
        yield
    except Exception as exc:  # the library raises what it likes
        raise InputError(f"{library} cannot read {what} ({first_line(exc)}); convert without --check") from exc


def first_line(exc: BaseException) -> str:
    """What an exception of another library says, in one line."""
    return f"{type(exc).__name__}: {next(iter(str(exc).splitlines()), '')}"


def rounding(reference: Reference, rounded: np.ndarray, exact: np.ndarray) -> Finding:
    """What the storage of the weights costs: told, not judged."""
    cost = "{:.1e}, {:.1e} of the largest value".format(*relative(rounded, exact))
    return Finding(f"the reference with its weights in {reference.dtype} instead of float32", note=f"changes by {cost}")


def round_weights(model: Any, dtype: str) -> None:
    """Round a float32 torch model to `dtype` as docs/explanation/storage.md says, without `device.weights`."""
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
