"""How a Hugging Face folder says that images are prepared: every setting is honoured, refused by name or harmless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.folder import load_json, load_settings
from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.models.images import Preprocess

_HALF = [0.5, 0.5, 0.5]
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_CROP = {"crop_size": 224, "do_center_crop": True, "do_convert_rgb": True, "default_to_square": False}
_COMMON: dict[str, Any] = {
    "do_resize": True,
    "size": 224,
    "default_to_square": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": _HALF,
    "image_std": _HALF,
    "do_convert_rgb": False,
    "resample": 3,
}
#: image processors of transformers that do nothing but what `Preprocess` does, and their settings where a file has none
CLASSES: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": _COMMON | {"resample": 2},
    "DeiTImageProcessor": _COMMON | {"size": 256, "crop_size": 224, "do_center_crop": True},
    "SiglipImageProcessor": _COMMON
    | {"size": {"height": 224, "width": 224}, "do_convert_rgb": True}
    | {"default_to_square": False},
    "CLIPImageProcessor": _COMMON | _CLIP | _CROP,
    "BitImageProcessor": _COMMON | _CLIP | _CROP,
}
#: the class that transformers takes for a file that names none, by model_type
_OF_MODELS = {
    **dict.fromkeys(("vit", "vit_mae", "vit_msn"), "ViTImageProcessor"),
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
}
_FLAGS = "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "default_to_square"
#: settings that change nothing here, and why
HARMLESS = {
    "image_processor_type": "the class, which decides the defaults",
    "feature_extractor_type": "the class, as older files call it",
    "processor_class": "what else is to be loaded with it",
    "pad_size": "read with do_pad alone, which is refused",
    "data_format": "the order of axes of what comes out, which is the model's",
    "device": "where it runs",
    "return_tensors": "the library of the arrays that come out",
    "disable_grouping": "how a batch is worked through",
    "image_seq_length": "tokens that an image takes in a text",
}


def image_preprocessing(folder: Path, image_size: tuple[int, int], channels: int) -> tuple[Preprocess, list[str]]:
    """-> (the settings of the folder's image processor in our terms, notes).

    InputError, naming file and key, if they are missing or ask for what `Preprocess` does not do.
    """
    path, given = _settings(folder)
    try:
        kind = _class(folder, given)
        _refuse(given)
        hf = CLASSES[kind] | given
        for key in _FLAGS:
            hf[key] = bool(hf[key]) if hf[key] is None else hf[key]
            require(isinstance(hf[key], bool), f"{key} = {hf[key]!r} is neither true nor false; correct it")
        _check_fits(_resize(hf), _crop(hf), image_size)
        preprocess = Preprocess(
            image_size,
            _per_channel(hf, "image_mean", channels) if hf["do_normalize"] else [0.0] * channels,
            _per_channel(hf, "image_std", channels) if hf["do_normalize"] else [1.0] * channels,
            _given(hf, "rescale_factor") if hf["do_rescale"] else 1.0,
            _given(hf, "resample") if hf["do_resize"] else 2,
            () if _resize(hf) == image_size and not hf["do_center_crop"] else _resize(hf),
            hf["do_center_crop"],
            hf["do_convert_rgb"],
        )
        wrong = f"image_mean and image_std are for {preprocess.channels} channels, config.json says {channels}"
        require(preprocess.channels == channels, wrong)
    except InputError as exc:
        raise InputError(f"{path}: {exc}") from exc
    unread = sorted(set(given) - set(CLASSES[kind]) - {"crop_size", "auto_map", "input_data_format"} - set(HARMLESS))
    return preprocess, [f"{path}: {kind} does not read {', '.join(unread)}"] * bool(unread)


def image_size(folder: Path, config: Any, any_size: bool) -> tuple[int, int]:
    """Height and width that the model is to take: config.json's, or where it takes any, what the image processor makes.

    config.json's too where the processor is missing or refused, which `image_preprocessing` says.
    """
    own: tuple[int, int] = config.image_size
    if not any_size:
        return own
    try:
        _, given = _settings(folder)
        hf = CLASSES[_class(folder, given)] | given
        made = _crop(hf) or _resize(hf) or own
    except InputError:
        return own
    return (made[0], made[1]) if len(made) == 2 and min(made) >= config.patch_size else own


def _settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """-> (file, its settings of images); what processor_config.json has of them comes first, as in transformers.

    A setting that is null stays so: in transformers it takes the default's place.
    """
    path, given = folder / "processor_config.json", None
    if path.is_file():
        given = load_settings(path).get("image_processor")
    if given is None:
        path = folder / "preprocessor_config.json"
        given = load_json(path)
    require(isinstance(given, dict), f"{path} has no JSON object of settings; download it again")
    return path, given


def _class(folder: Path, given: dict[str, Any]) -> str:
    """The name of the class in transformers, without its backend."""
    older = str(given.get("feature_extractor_type") or "").replace("FeatureExtractor", "ImageProcessor")
    config = folder / "config.json"
    model = load_settings(config) if config.is_file() else {}
    usual = _OF_MODELS.get(str(model.get("model_type", "vit")), "")
    name = str(given.get("image_processor_type") or older or model.get("image_processor_type") or usual)
    require(bool(name), "image_processor_type is missing, and there is no usual one of such models; give it")
    kind = name.removesuffix("Fast").removesuffix("Pil")
    require(kind in CLASSES, f"image_processor_type '{name}' is not supported; use one of {', '.join(CLASSES)}")
    return kind


def _refuse(given: dict[str, Any]) -> None:
    """InputError on steps that there are none of here."""
    require(not given.get("auto_map"), "auto_map names code of its own, which is never run")
    require(not given.get("do_pad", False), "do_pad = true is not supported; images are resized or cropped, not padded")
    require(not given.get("use_square_size", False), "use_square_size = true is not supported; give height and width")
    order = str(given.get("input_data_format") or "channels_last")
    require(order == "channels_last", f"input_data_format = '{order}' is not supported; only channels_last is")


def _resize(hf: dict[str, Any]) -> tuple[int, ...] | None:
    """(height, width), the shortest edge alone, or None where nothing is resized."""
    return _pixels("size", _given(hf, "size"), hf["default_to_square"]) if hf["do_resize"] else None


def _crop(hf: dict[str, Any]) -> tuple[int, ...] | None:
    if not hf["do_center_crop"]:
        return None
    return _pixels("crop_size", _given(hf, "crop_size"), True)


def _pixels(key: str, value: Any, square: bool) -> tuple[int, ...]:
    """A size as transformers reads it."""
    if isinstance(value, dict) and set(value) == {"height", "width"}:
        edges = [value["height"], value["width"]]
    elif isinstance(value, dict) and set(value) == {"shortest_edge"} and key == "size":
        edges = [value["shortest_edge"]]
    elif isinstance(value, int):
        edges = [value, value] if square else [value]
    else:
        edges = value if isinstance(value, list) and len(value) == 2 else []
    known = edges and all(isinstance(edge, int) and not isinstance(edge, bool) and edge > 0 for edge in edges)
    require(bool(known), f"{key} = {value} is not supported; only height and width, or shortest_edge, are")
    return tuple(edges)


def _check_fits(resize: tuple[int, ...] | None, crop: tuple[int, ...] | None, image_size: tuple[int, int]) -> None:
    """InputError if no image can become what the model takes."""
    height, width = image_size
    if crop is not None:
        require(crop == image_size, f"crop_size = {crop} does not fit the image_size {image_size} of config.json")
    elif resize is not None:
        fits = resize == image_size if len(resize) == 2 else resize == (min(height, width),)
        require(fits, f"size = {resize} does not fit the image_size {image_size} of config.json")


def _per_channel(hf: dict[str, Any], key: str, channels: int) -> Any:
    value = _given(hf, key)
    return [value] * channels if isinstance(value, int | float) else value


def _given(hf: dict[str, Any], key: str) -> Any:
    require(hf.get(key) is not None, f"{key} is needed and has no value; give it one")
    return hf[key]
