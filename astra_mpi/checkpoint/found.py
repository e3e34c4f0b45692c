"""What a path holds where a Hugging Face checkpoint was expected: named, with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from astra_mpi.config import require
from astra_mpi.errors import InputError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LOAD = "load it with transformers' from_pretrained(..) and save it with save_pretrained(..), which writes safetensors"
_TRANSFORMERS_4 = "load it with transformers 4 and its TensorFlow or Flax (from_tf=True, from_flax=True), and save it"
_PICKLE = "a pickle of PyTorch, which is never loaded because it may run any code"
_ORIGINAL = "give the checkpoint with safetensors that it was made from"
_OTHER_NAME = f"rename it to {WHOLE} if it is the whole model"
#: pattern of names, what such a file is, what to do; the first that is found is told
_KINDS = (
    (r"model-\d+-of-\d+\.safetensors", f"a shard, and {INDEX} is missing", "download it too"),
    (r"consolidated.*\.safetensors", "weights in Mistral's own layout", "give a folder in the layout of Hugging Face"),
    (r"diffusion_pytorch_model.*\.safetensors", "a part of a diffusion model", "such models are not supported"),
    (r".*\.safetensors", "safetensors of another name", _OTHER_NAME),
    (r"pytorch_model.*\.bin(\.index\.json)?", _PICKLE, _LOAD),
    (r".*\.gguf", "a GGUF file", "give that file instead of the folder"),
    (r"(onnx/)?.*\.(onnx|onnx_data|ort)", "an export to ONNX", _ORIGINAL),
    (r"tf_model.*\.h5", "TensorFlow's", _TRANSFORMERS_4),
    (r".*\.msgpack", "Flax's", _TRANSFORMERS_4),
    (r"(?!training_args|optimizer|scheduler|rng_state).*\.(bin|pt|pth|ckpt|pkl)", _PICKLE, _LOAD),
    (r".*\.npz", "MLX's", _ORIGINAL),
    (r".*\.(ot|tflite|mlmodel|engine|plan)", "another program's", _ORIGINAL),
)


def checked_folder(source: str | Path) -> Path:
    """The path of a folder; InputError says what else it is and what to do, or how a name of the Hub is downloaded."""
    source = Path(source)
    if source.is_dir():
        return source
    wanted = "give a Hugging Face folder with config.json and safetensors"
    if source.is_file():
        if source.name == "config.json" or source.suffix == ".safetensors":
            raise InputError(f"{source} is not a folder; give the folder that it is in, {source.parent}")
        what, cure = _kind(source.name) or ("a file", wanted)
        raise InputError(f"{source} is not a folder: {what}; {cure}")
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", str(source)):
        raise InputError(
            f"{source} is not a folder here; if it is a name on the Hugging Face Hub, download it first with"
            f" `hf download {source} --local-dir {source.name}` (pip install huggingface_hub) and give {source.name}"
        )
    raise InputError(f"{source} is not a folder; {wanted}")


def no_weights(folder: Path) -> str:
    """A folder without safetensors of the known names: what it has instead, and what to do."""
    lacks = f"{folder} has no {WHOLE} and no {INDEX}"
    if (folder / "model_index.json").is_file():
        return f"{lacks} but a model_index.json: it is a diffusers pipeline, which is not supported"
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    inside = list(_checkpoints(folder))
    if inside and "config.json" not in names:
        given = "it" if len(inside) == 1 else "one of them"
        return f"{lacks}, but the folder {', '.join(map(str, inside[:5]))} in it has; give {given}"
    names += sorted(path.relative_to(folder).as_posix() for path in folder.glob("onnx/*.onnx"))
    for pattern, what, cure in _KINDS:
        found = [name for name in names if re.fullmatch(pattern, name)]
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"{lacks} but {found[0]}{more}: {what}; {cure}"
    return f"{lacks}; give a folder with safetensors weights"


def _kind(name: str) -> tuple[str, str] | None:
    """-> (what a file of this name is, what to do)."""
    return next(((what, cure) for pattern, what, cure in _KINDS if re.fullmatch(pattern, name)), None)


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Folders up to three below that have weights, as snapshots in the Hub's cache do."""
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(folder.glob(f"{depth}/config.json")):
            if any((path.parent / name).is_file() for name in (WHOLE, INDEX)):
                yield path.parent


def check_pointer(path: Path) -> None:
    """InputError if a file is what Git LFS leaves where the file itself was not fetched."""
    with path.open("rb") as file:
        pointer = file.read(40).startswith(b"version https://git-lfs.github.com/spec")
    require(not pointer, f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull` in {path.parent}")
