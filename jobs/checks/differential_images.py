"""Every setting of an image processor set to another value, one at a time: our images against those of transformers.

    python jobs/checks/differential_images.py              # all classes, settings and images
    python jobs/checks/differential_images.py --class ViTImageProcessor --verbose

For each class that `convert` knows, each setting is left out, and set to each of `VALUES`. The folder is read by
AutoImageProcessor and by `astra_mpi.convert.images`, and both prepare uint8 images of odd sizes, grey, RGB and RGBA. A
case ends well if ours are the same within TOLERANCE, or if we refuse with a sentence that names the setting, or if
transformers has no image of the model's shape for it either. All else is printed; exit code 1 then. A setting that
transformers reads and that has no value here is a finding too.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from differential import names, silence

from astra_mpi.convert.images import CLASSES, image_preprocessing
from astra_mpi.errors import InputError
from astra_mpi.models.vision.readers import READERS

#: of the normalised values: float32 rounding; pixels are equal to the bit, as both resize with Pillow
TOLERANCE = 1e-5
SIZE = 20, 12  # the model's height and width
BASE: dict[str, Any] = {
    "size": {"height": 20, "width": 12},
    "resample": 3,
    "do_center_crop": False,
    "image_mean": [0.4, 0.5, 0.6],
    "image_std": [0.2, 0.3, 0.4],
}
#: with what the classes do differently: the default of `resample` is one of them
CROPPED = {key: value for key, value in BASE.items() if key not in ("resample", "do_center_crop")}
CROPPED |= {"size": 24, "crop_size": {"height": 20, "width": 12}, "do_center_crop": True}
VALUES: dict[str, list[Any]] = {
    "do_resize": [False, True, None, "false"],
    "size": [
        {"height": 30, "width": 12},
        {"shortest_edge": 12},
        {"shortest_edge": 14},
        {"longest_edge": 20},
        {"shortest_edge": 12, "longest_edge": 20},
        {"max_height": 20, "max_width": 12},
        {"min_pixels": 100, "max_pixels": 240},
        {"height": 20},
        12,
        [20, 12],
        [20],
        None,
        "20",
    ],
    "default_to_square": [False, True, None],
    "resample": [0, 1, 2, 4, 5, 6, None],
    "do_center_crop": [True],
    "crop_size": [None, {"height": 20, "width": 12}, {"height": 9, "width": 9}, 20, [20, 12], {"shortest_edge": 12}],
    "do_rescale": [False, None],
    "rescale_factor": [1 / 127.5, 1, None],
    "do_normalize": [False, None],
    "image_mean": [[0.1, 0.2, 0.3], 0.25, [0.5], None],
    "image_std": [[0.1, 0.2, 0.3], 0.25, [0.5], None],
    "do_convert_rgb": [True, False, None],
    "do_pad": [True],
    "pad_size": [{"height": 32, "width": 32}],
    "data_format": ["channels_last", "channels_first"],
    "input_data_format": ["channels_last", "channels_first"],
    "device": ["cpu"],
    "return_tensors": ["np"],
    "disable_grouping": [True],
    "image_seq_length": [7],
    "image_processor_type": ["ViTImageProcessorFast", "ViTFeatureExtractor", "ConvNextImageProcessor", "Other"],
    "feature_extractor_type": ["ViTFeatureExtractor", "DeiTFeatureExtractor", "ConvNextFeatureExtractor"],
    "processor_class": ["CLIPProcessor"],
    "auto_map": [{"AutoImageProcessor": "code.Own"}],
    "use_square_size": [True],
    "crop_pct": [0.9],
    "do_reduce_labels": [True],
}
#: more than one at a time, where one alone has no effect
TOGETHER: list[dict[str, Any]] = [
    {"do_center_crop": True, "crop_size": {"height": 20, "width": 12}, "size": {"height": 25, "width": 31}},
    {"do_center_crop": True, "crop_size": {"height": 20, "width": 12}, "size": {"shortest_edge": 24}},
    {"do_center_crop": True, "crop_size": {"height": 20, "width": 12}, "size": {"shortest_edge": 9}},
    {"do_center_crop": True, "crop_size": [20, 12], "do_resize": False},
    {"do_center_crop": True, "crop_size": [20, 12], "size": 17, "default_to_square": False},
    {"do_pad": True, "pad_size": {"height": 20, "width": 12}},
    {"do_normalize": False, "do_rescale": False},
    {"do_normalize": False, "image_mean": None, "image_std": None},
    {"do_rescale": False, "rescale_factor": None},
    {"do_resize": False, "size": None, "resample": None},
    {"image_processor_type": None, "feature_extractor_type": "DeiTFeatureExtractor"},
    {"image_processor_type": None},
]
SHAPES = [(20, 12), (31, 17), (13, 40), (7, 5), (12, 12), (21, 13)]


def images() -> Iterator[np.ndarray]:
    """uint8 (1, H, W) or (1, H, W, C)."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        for channels in ((), (1,), (3,), (4,)):
            yield rng.integers(0, 256, (1, *shape, *channels), dtype=np.uint8)


def cases(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """-> (what is changed, settings); None takes a setting away."""
    base = BASE | {"image_processor_type": kind}
    yield "nothing", base
    for key in base:
        yield f"{key} left out", {name: value for name, value in base.items() if name != key}
    for key, values in VALUES.items():
        for value in values:
            yield f"{key} = {json.dumps(value)}", base | {key: value}
    for changes in TOGETHER:
        yield json.dumps(changes), base | changes


def unknown_settings() -> list[str]:
    """What transformers reads and has no value here."""
    from transformers.processing_utils import ImagesKwargs

    return sorted(set(ImagesKwargs.__annotations__) - set(VALUES))


def outcome(
    folder: Path, settings: dict[str, Any], changed: str, size: tuple[int, int] = SIZE, model_type: str = "vit"
) -> tuple[str, str]:
    """-> (how it ended: same, refused, both refuse, or a finding; details)."""
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    try:
        prepare, _ = image_preprocessing(folder, size, 3)
    except InputError as exc:
        named = [key for key in VALUES if names(key, changed)]
        if any(names(key, str(exc)) for key in named) or not _has_images(_reference(folder), size):
            return "refused", str(exc)
        return "finding: refused without its name", str(exc)
    theirs = _reference(folder)
    ends = collections.Counter(_compare(theirs, prepare, batch, size) for batch in images())
    findings = [end for end in ends if end.startswith("finding")]
    return (findings or ["same" if "same" in ends else "both refuse"])[0], json.dumps(ends)


def _reference(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # whatever it raises, it has no answer
        return exc


def _theirs(processor: Any, batch: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """float (1, 3, height, width), or None where transformers has no images that the model takes."""
    if isinstance(processor, Exception):
        return None
    batch = batch if batch.ndim == 4 else batch[..., None]
    try:
        known = {"input_data_format": "channels_last"} if not _order(processor) else {}
        pixels = np.asarray(processor(list(batch), return_tensors="np", **known)["pixel_values"], np.float32)
    except Exception:  # the library raises what it likes
        return None
    return pixels if pixels.shape == (1, 3, *size) else None


def _order(processor: Any) -> Any:
    return getattr(processor, "input_data_format", None)


def _has_images(processor: Any, size: tuple[int, int]) -> bool:
    return any(_theirs(processor, batch, size) is not None for batch in images())


def _compare(processor: Any, prepare: Any, batch: np.ndarray, size: tuple[int, int]) -> str:
    expected = _theirs(processor, batch, size)
    try:
        ours = prepare(batch)
    except InputError:
        return "both refuse" if expected is None else f"finding: {batch.shape} refused"
    if expected is None:
        return f"finding: {batch.shape} taken, and not by transformers"
    # do_rescale and do_normalize false leave values up to 255
    off = float(np.abs(ours - expected).max() / max(1, np.abs(expected).max()))
    return "same" if off <= TOLERANCE else f"finding: {batch.shape} differs by {off:.1e}"


def findings(kinds: Sequence[str] = (), verbose: bool = False) -> int:
    """Print findings (verbose: all cases) and totals -> how many there are. Default: of all classes."""
    counts: collections.Counter[str] = collections.Counter()
    for key in unknown_settings():
        counts["finding"] += 1
        print(f"finding: transformers reads {key}, which this job does not set")
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds or CLASSES:
            every = [(changed, settings, SIZE) for changed, settings in cases(kind)]
            every.append(("all left out", {"image_processor_type": kind}, (224, 224)))
            for changed, settings, size in every:
                end, details = outcome(Path(folder), settings, changed, size)
                counts[end.split(":")[0]] += 1
                if verbose or end.startswith("finding"):
                    print(f"{kind}, {changed}: {end} ({details})")
        for name in () if kinds else ("vit", *READERS):  # the class that a file without one has
            settings = {key: value for key, value in CROPPED.items() if key != "image_processor_type"}
            end, details = outcome(Path(folder), settings, "image_processor_type", SIZE, name)
            counts[end.split(":")[0]] += 1
            if verbose or end.startswith("finding"):
                print(f"{name}, image_processor_type missing: {end} ({details})")
    print(f"{sum(counts.values())} cases: " + ", ".join(f"{n} {end}" for end, n in sorted(counts.items())))
    return counts["finding"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="kinds", action="append", choices=CLASSES, help="of these alone")
    parser.add_argument("--verbose", action="store_true", help="a line per case")
    args = parser.parse_args()
    silence()
    return 1 if findings(args.kinds or (), args.verbose) else 0


if __name__ == "__main__":
    sys.exit(main())
