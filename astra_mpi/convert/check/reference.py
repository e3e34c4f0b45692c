"""The source of a conversion as transformers reads it, its weights rounded as the model file stores them."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from astra_mpi.convert.check.findings import Finding, relative, tolerance
from astra_mpi.convert.check.image_models import class_name, fold
from astra_mpi.convert.check.libraries import quiet, reads
from astra_mpi.convert.sentence import MODULES, read_encoder
from astra_mpi.device.formats import FORMATS
from astra_mpi.errors import InputError
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.models.bert_config import BertConfig

_INSTALL, _SENTENCES = "pip install torch 'transformers>=5'", "'sentence-transformers>=6'"
INSTALL_SENTENCES = f"pip install {_SENTENCES}"
#: nothing is downloaded, no code of the folder and no pickle is run
SAFE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "use_safetensors": True}
Outputs = dict[str, np.ndarray]
#: ends of the names of parameters that are vectors, whatever their shape
_VECTORS = ("cls_token", "distillation_token", "probe")


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
            turned = forward_turned(self.model, forward)
        own = [relative(other[name], array)[1] for other in (single, turned) for name, array in double.items() if other]
        return double, tolerance(max(own, default=0.0)), exact


def forward_turned(model: Any, forward: Callable[[Any], Outputs]) -> Outputs:
    """`forward` with the angles of rotary positions one rounding off: transformers has them in float32 whatever the
    model's type, which at position 8,000 is an error of 5e-4. {} for a model without them."""
    frequencies = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")]
    before = [buffer.clone() for buffer in frequencies]
    for buffer in frequencies:
        buffer *= 1 + 2**-23
    found = forward(model) if frequencies else {}
    for buffer, value in zip(frequencies, before, strict=True):
        buffer.copy_(value)
    return found


def load_reference(source: Path, model: ModelFile) -> Reference:
    """InputError if transformers or PyTorch are missing, or cannot read the source."""
    transformers = _libraries(source)
    if source.suffix == ".gguf":
        from astra_mpi.convert.check.gguf import reference_of as of_gguf

        return Reference(source, source.parent, of_gguf(source, model.keeps), model.stored_dtype, False, model.keeps)
    if source.is_file():
        from astra_mpi.convert.check.llama2c import reference_of

        return Reference(source, source.parent, reference_of(source), model.stored_dtype, is_folder=False)
    encoder = read_encoder(source)
    folder = source if encoder is None else encoder.transformer
    images = model.config.family == "vit"
    kind = class_name(folder, model.config) if images else _auto_class(model.config)
    with quiet(), reads(str(folder)):
        reference = getattr(transformers, kind).from_pretrained(folder, attn_implementation="eager", **SAFE)
    reference = reference.eval().float()
    if images and model.stored_dtype != "float32":
        fold(reference, model.config)
    return Reference(source, folder, reference, model.stored_dtype)


def _auto_class(config: Any) -> str:
    """Of transformers, for texts, with the head that the model file has."""
    if not isinstance(config, BertConfig):
        return "AutoModelForCausalLM"
    return "AutoModelForSequenceClassification" if config.n_classes else "AutoModel"


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


def rounding(reference: Reference, rounded: np.ndarray, exact: np.ndarray) -> Finding:
    """What the storage of the weights costs: told, not judged."""
    cost = "{:.1e}, {:.1e} of the largest value".format(*relative(rounded, exact))
    return Finding(f"the reference with its weights in {reference.dtype} instead of float32", note=f"changes by {cost}")


def round_weights(model: Any, dtype: str) -> None:
    """Round a float32 torch model to `dtype` as docs/explanation/storage.md says, as PyTorch does where it can."""
    import torch
    from transformers.pytorch_utils import Conv1D

    kind = FORMATS[dtype]
    if not kind.layers_only:
        for name, weight in model.named_parameters():
            is_matrix = weight.ndim > 1 and not name.endswith(_VECTORS)
            if is_matrix:
                weight.data = kind.rounded_tensor(weight.data, ())
        return
    words = None
    with suppress(NotImplementedError):  # of models that have two kinds of inputs
        words = model.get_input_embeddings()
    done: set[int] = set()  # a head may share the embedding's weight
    for module in model.modules():
        is_linear = isinstance(module, torch.nn.Linear | torch.nn.Conv2d | Conv1D)
        if isinstance(module, torch.nn.MultiheadAttention):
            module.in_proj_weight.data = kind.rounded_tensor(module.in_proj_weight.data, (1,))
        is_words = module is words and isinstance(module, torch.nn.Embedding)
        if not (is_linear or is_words) or id(module.weight) in done:
            continue
        done.add(id(module.weight))
        weight = module.weight.data
        axes = (0,) if isinstance(module, Conv1D) else tuple(range(1, weight.ndim))  # all but the layer's outputs
        module.weight.data = kind.rounded_tensor(weight, axes)
