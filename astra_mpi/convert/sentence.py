"""A folder of sentence-transformers: its modules and their settings as `SentenceTransformer(folder)` reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import load_json, load_settings
from astra_mpi.config import require
from astra_mpi.convert.sentence_dense import DenseModule, read_dense
from astra_mpi.convert.sentence_pooling import check_normalize, pooling_of
from astra_mpi.convert.tokenizer_files import damaged
from astra_mpi.errors import InputError

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
#: without effect on embeddings: how they are compared, what made the file, and what is checked here
_HARMLESS = {"similarity_fn_name", "__version__", "model_type"}
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
#: of all prompts, for they lie in one attribute of the model file
_MOST_CHARACTERS = 10000


@dataclass(frozen=True)
class SentenceEncoder:
    """How a folder's texts become embeddings, beside its Transformer."""

    path: Path  # modules.json
    transformer: Path  # folder of the Transformer
    pooling: str
    normalize: bool
    embedding_size: int | None  # numbers kept of an embedding; None: all
    prompts: dict[str, str]  # what is put before texts, by name
    default_prompt: str | None  # a name
    left_aside: list[str] = field(default_factory=list)
    dense: tuple[DenseModule, ...] = ()  # layers after pooling

    def config_fields(self, d_model: int) -> dict[str, Any]:
        """Fields of the config of a family that pools. InputError if widths do not fit each other."""
        fields: dict[str, Any] = {"pooling": self.pooling, "normalize": self.normalize}
        if self.dense:
            fields["dense_widths"] = tuple(layer.width for layer in self.dense)
            fields["dense_activations"] = tuple(layer.activation for layer in self.dense)
        for layer in self.dense:
            fits = f"{layer.folder / 'config.json'}: in_features = {layer.inputs}, and it is given {d_model} numbers"
            require(layer.inputs == d_model, fits)
            d_model = layer.width
        size = self.embedding_size if self.embedding_size is not None and self.embedding_size < d_model else 0
        return fields | {"embedding_size": size}


def read_encoder(folder: Path) -> SentenceEncoder | None:
    """What modules.json and the files beside it say; None if there is no modules.json.

    InputError names the file and the key of what is not supported.
    """
    if not (folder / MODULES).is_file():
        return None
    with damaged(folder):
        return _read(folder, folder / MODULES)


def _read(folder: Path, path: Path) -> SentenceEncoder:
    modules = _modules(path)
    whole = modules["Transformer"]
    require(whole.is_dir(), f"{path} gives the Transformer the path {whole}, which is no folder; download it again")
    settings = load_settings(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    kind = settings.get("model_type", "SentenceTransformer")
    require(kind == "SentenceTransformer", f"{folder / SETTINGS}: model_type = {kind!r} is not supported")
    pooling, include_prompt, aside = pooling_of(modules["Pooling"], "Normalize" in modules)
    if "Normalize" in modules:
        check_normalize(modules["Normalize"])
    prompts, default = _prompts(folder / SETTINGS, settings)
    if not include_prompt and any(prompts.values()):
        said = "include_prompt = false leaves the tokens of a prompt out"
        where = modules["Pooling"] / "config.json"
        require(not (default and prompts[default]), f"{where}: {said}, which is not supported with default_prompt_name")
        aside.append(f"{SETTINGS}: prompts ({said})")
        prompts = {}
    size = settings.get("truncate_dim")
    good = size is None or (type(size) is int and size >= 1)
    require(good, f"{folder / SETTINGS}: truncate_dim = {size!r} must be a positive integer")
    known = {"prompts", "default_prompt_name", "truncate_dim", *_HARMLESS}
    aside += [f"{SETTINGS}: {key} (not read by encode)" for key in sorted(set(settings) - known)]
    dense = tuple(read_dense(modules[name]) for name in modules if name.startswith("Dense"))
    texts = size, prompts, default, aside
    return SentenceEncoder(path, modules["Transformer"], pooling, "Normalize" in modules, *texts, dense)


def _modules(path: Path) -> dict[str, Path]:
    """Folders by kind of module, of those that have an effect. InputError on others, and on another order."""
    try:
        entries = [(str(m["type"]), _part(path.parent, str(m["path"])), str(m["name"])) for m in load_json(path)]
    except (TypeError, KeyError, ValueError, OSError) as exc:
        raise InputError(f"{path} is damaged ({exc}); download it again") from exc
    names = [name for _, _, name in entries]
    require(len(set(names)) == len(names), f"{path} gives two modules one name ({', '.join(names)}); number them")
    kinds: dict[str, Path] = {}
    for kind, part, _ in entries:
        bare = kind.rpartition(".")[2]
        own = kind.startswith("sentence_transformers.") and bare in _KINDS
        require(own, f"{path} has a module of type {kind}, which is not supported")
        if bare == "Dropout" or (bare == "Normalize" and "Pooling" not in kinds):
            if bare == "Normalize":
                check_normalize(part)
            continue  # neither does anything: outside of training, and before there is an embedding
        if bare == "Dense":
            middle = "Pooling" in kinds and "Normalize" not in kinds
            require(middle, f"{path} has a Dense that does not stand between Pooling and Normalize, not supported here")
            bare = f"Dense {len(kinds)}"
        require(
            bare not in kinds or bare == "Normalize", f"{path} has two modules of type {kind}, which is not supported"
        )
        kinds[bare] = part
    require(
        next(iter(kinds), None) == "Transformer", f"{path} does not begin with a Transformer, which is not supported"
    )
    require("Pooling" in kinds, f"{path} has no module of type Pooling, so it makes no embeddings; remove {path.name}")
    return kinds


def _part(folder: Path, name: str) -> Path:
    """A folder inside a model's folder. ValueError if it is elsewhere, OSError on a name that none can have."""
    part = folder / name
    part.is_dir()
    if not part.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is outside the folder")
    return part


def _prompts(path: Path, settings: dict[str, Any]) -> tuple[dict[str, str], str | None]:
    """-> (prompts by name, name of the one that is put before texts where none is asked for)."""
    prompts = settings.get("prompts", {})
    require(isinstance(prompts, dict), f"{path}: prompts = {prompts!r} is not an object")
    prompts = {name: "" if prompt is None else prompt for name, prompt in prompts.items()}
    for name, prompt in prompts.items():
        require(isinstance(prompt, str), f"{path}: the prompt {name!r} is {prompt!r}; give a string")
    n = sum(len(name) + len(prompt) for name, prompt in prompts.items())
    require(n <= _MOST_CHARACTERS, f"{path}: prompts have {n} characters, the most are {_MOST_CHARACTERS}; drop some")
    default = settings.get("default_prompt_name")
    known = default is None or default in {*prompts, "query", "document"}
    require(known, f"{path}: default_prompt_name = {default!r} is not in prompts ({', '.join(prompts)})")
    return prompts, default if default in prompts else None
