"""The model file: what is written is read back, and whatever does not fit is refused with a sentence."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from astra_mpi.codec.config import CodecConfig
from astra_mpi.device.formats import FORMATS
from astra_mpi.device.weights import Narrow, forget, mapped_file, narrowed
from astra_mpi.errors import AstraError, InputError
from astra_mpi.files import hdf5
from astra_mpi.files.codecfile import read_codebooks, write_codebooks
from astra_mpi.files.modelfile import ModelFile, read_model, write_model
from astra_mpi.job.info import describe
from helpers.fakes import bert_config, model_file, random_codec, random_weights, vit_config

SETTINGS = {
    "tokenizer": '{"größe": "✓"}',
    "preprocess": {"max_tokens": 12},
    "provenance": {"source": "x", "command": "y"},
}


@pytest.fixture
def model():
    return dataclasses.replace(model_file(bert_config()), **SETTINGS)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("pristine") / "model.h5"
    write_model(path, dataclasses.replace(model_file(bert_config()), **SETTINGS))
    return path


@pytest.fixture
def path(tmp_path, pristine):
    """A model file to damage."""
    return Path(shutil.copy(pristine, tmp_path))


@pytest.mark.parametrize("config", [bert_config(), bert_config(has_pooler=True), vit_config(qkv_bias=False)])
def test_round_trip(tmp_path, config):
    model = dataclasses.replace(model_file(config), **SETTINGS)
    digest = write_model(tmp_path / "m.h5", model)
    back = read_model(tmp_path / "m.h5")
    assert back.digest == digest
    assert back.config == config
    assert {name: getattr(back, name) for name in SETTINGS} == SETTINGS
    assert back.codec.digest == model.codec.digest
    assert back.weights.keys() == model.weights.keys()
    for name, array in model.weights.items():
        assert back.weights[name].dtype == np.float32
        np.testing.assert_array_equal(back.weights[name], array)


def test_least_model_has_no_extras(tmp_path, model):
    write_model(tmp_path / "m.h5", ModelFile(model.config, model.weights))
    back = read_model(tmp_path / "m.h5")
    assert (back.codec, back.tokenizer, back.preprocess, back.provenance) == (None, None, None, {})


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_narrow_weights_stay_narrow(tmp_path, model, dtype):
    digest = write_model(tmp_path / "narrow.h5", dataclasses.replace(model, stored_dtype=dtype))
    narrow = read_model(tmp_path / "narrow.h5")
    assert narrow.stored_dtype == dtype and narrow.digest == digest
    assert digest != write_model(tmp_path / "full.h5", model)
    for name, array in model.weights.items():
        weight = narrow.weights[name]
        assert isinstance(weight, Narrow) == (array.ndim == 2 and (not FORMATS[dtype].layers_only or is_linear(name)))
        np.testing.assert_array_equal(weight, np.asarray(narrowed(name, array, dtype)))
    # the same numbers have the same digest, however they are stored
    assert write_model(tmp_path / "again.h5", narrow) == digest
    assert write_model(tmp_path / "wide.h5", dataclasses.replace(narrow, stored_dtype="float32")) == digest
    assert describe(tmp_path / "narrow.h5")["weight_bytes"] == sum(w.nbytes for w in narrow.weights.values())


def is_linear(name):
    return name.endswith(".weight") or name == "embed.word"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "q4_1"])
def test_matrices_are_mapped_from_the_file(tmp_path, dtype):
    config = bert_config(d_model=96, n_heads=3, d_ff=80)
    write_model(tmp_path / "m.h5", ModelFile(config, random_weights(config), stored_dtype=dtype))
    weights = read_model(tmp_path / "m.h5").weights
    for name in ("embed.word", "blocks.1.fc2.weight"):
        assert mapped_file(weights[name]) is not None
    before = np.asarray(weights["blocks.0.q.weight"])
    forget(weights["blocks.0.q.weight"])
    np.testing.assert_array_equal(weights["blocks.0.q.weight"], before)


@pytest.mark.parametrize("name", ["blocks.0.fc1.weight", "embed.word"])
@pytest.mark.parametrize("group", ["weights", "scales"])
def test_damage_to_narrow_weights_is_found(tmp_path, model, name, group):
    path = tmp_path / "m.h5"
    write_model(path, dataclasses.replace(model, stored_dtype="int8"))
    with h5py.File(path, "r+") as file:
        file[group][name][0, 0] = 0 if file[group][name][0, 0] else 1
    with pytest.raises(InputError, match=f"m.h5 is damaged or edited .weight {name} differ"):
        read_model(path)
    names = sorted(model.weights)
    others = read_model(path, (names.index(name) + 1, len(names)))  # of which another one is checked
    assert others.weights.keys() == model.weights.keys()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda file: file["weights/embed.word"].attrs.pop("sha256"), "no text attribute 'sha256'"),
        (lambda file: file["weights/embed.word"].attrs.modify("sha256", "0" * 64), "its weights or config"),
        (lambda file: file.attrs.modify("digest", "0" * 64), "its weights or config"),
        (lambda file: file.attrs.pop("manifest"), "has no manifest"),
        (lambda file: file.__delitem__("scales/embed.word"), "/scales/embed.word is missing"),
        (lambda file: file.move("scales/embed.word", "scales/other"), "/scales/embed.word is missing"),
    ],
)
def test_edited_narrow_files_are_refused(tmp_path, model, edit, message):
    write_model(tmp_path / "m.h5", dataclasses.replace(model, stored_dtype="int8"))
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        edit(file)
    with pytest.raises(InputError, match=message):
        read_model(tmp_path / "m.h5")


def test_sixteen_bits_must_say_what_they_are(tmp_path, model):
    write_model(tmp_path / "m.h5", dataclasses.replace(model, stored_dtype="bfloat16"))
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["weights/embed.word"].attrs["dtype"]
    with pytest.raises(InputError, match=r"embed\.word is uint16 without dtype = bfloat16"):
        read_model(tmp_path / "m.h5")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_files_of_before_there_was_a_manifest(path, dtype):
    """Without checksums of weights, and with float16 vectors; the digest is that of the float32 numbers."""
    with h5py.File(path, "r+") as file:
        numbers = {name: item[()].astype(dtype) for name, item in file["weights"].items()}
        del file["weights"], file.attrs["manifest"], file.attrs["checksum"]
        for name, array in numbers.items():
            file["weights/" + name] = array
        sha = hashlib.sha256(f"{file.attrs['family']}\n{file.attrs['config']}\n".encode())
        for name in sorted(numbers):
            sha.update(f"{name} {numbers[name].shape}\n".encode() + numbers[name].astype("<f4").tobytes())
        file.attrs["digest"] = sha.hexdigest()
    old = read_model(path)
    assert (old.digest, old.stored_dtype) == (sha.hexdigest(), dtype)
    for name, array in numbers.items():
        np.testing.assert_array_equal(old.weights[name], array.astype(np.float32))
        assert array.ndim > 1 or old.weights[name].dtype == np.float32
    assert write_model(path.parent / "new.h5", old) == old.digest or dtype == "float16"
    with h5py.File(path, "r+") as file:
        file["weights/embed.word"][0, 0] += 1
    with pytest.raises(InputError, match="damaged or edited"):
        read_model(path)


def test_digest_sees_weights_names_and_config(tmp_path, model):
    def digest(**changes):
        return write_model(tmp_path / "m.h5", dataclasses.replace(model, **changes))

    swapped = model.weights | {
        "blocks.0.q.bias": model.weights["blocks.0.k.bias"],
        "blocks.0.k.bias": model.weights["blocks.0.q.bias"],
    }
    nudged = dict(model.weights)
    nudged["blocks.1.fc2.bias"] = np.nextafter(nudged["blocks.1.fc2.bias"], np.float32(9))
    configs = dataclasses.replace(model.config, pooling="cls")
    assert len({digest(), digest(weights=swapped), digest(weights=nudged), digest(config=configs)}) == 4
    assert digest() == digest(tokenizer=None, provenance={})


def test_many_long_labels(tmp_path):
    config = vit_config(n_classes=1000, labels=tuple(f"{'label' * 30} {i}" for i in range(1000)))  # over 64 KB of JSON
    write_model(tmp_path / "m.h5", model_file(config))
    assert read_model(tmp_path / "m.h5").config == config


# --- writing -------------------------------------------------------------------------------------------------------


def test_failed_write_leaves_the_old_file_and_nothing_else(path):
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), hdf5.writing(path) as file:
        file["x"] = np.zeros(10)
        _ = 1 / 0
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.h5"]


def test_failed_rename_is_an_error_with_nothing_left(path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(AstraError, match=r"model\.h5 cannot be written \(No space left on device\)"):
        write_model(path, read_model(path))
    assert os.listdir(path.parent) == ["model.h5"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("embed.word"), "weight embed.word is missing"),
        (lambda w: w.update(other=np.zeros(3, np.float32)), "weight other is unknown"),
        (lambda w: w.update({"embed.type": np.zeros((3, 24), np.float32)}), r"embed.type has shape \(3, 24\)"),
        (lambda w: w["embed.word"].__setitem__((3, 4), np.inf), "embed.word has NaN or infinite"),
    ],
)
def test_unfit_weights_are_not_written(tmp_path, model, change, message):
    change(model.weights)
    with pytest.raises(InputError, match=message):
        write_model(tmp_path / "m.h5", model)
    assert not os.listdir(tmp_path)


def test_weights_beyond_float16_are_not_written(tmp_path, model):
    model.weights["embed.word"][0, 0] = 70000
    with pytest.raises(InputError, match=r"embed\.word has values too large for float16"):
        write_model(tmp_path / "m.h5", dataclasses.replace(model, stored_dtype="float16"))


def test_codebooks_of_another_width_are_not_written(tmp_path, model):
    codec = random_codec(bert_config(d_model=48, d_ff=40), model.codec.config)
    with pytest.raises(InputError, match="codebooks for"):
        write_model(tmp_path / "m.h5", dataclasses.replace(model, codec=codec))


def test_missing_folder(tmp_path, model):
    with pytest.raises(InputError, match="no/such does not exist"):
        write_model(tmp_path / "no" / "such" / "m.h5", model)


# --- reading what is no model file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"PK\x03\x04 a zip file", "is not an HDF5 file"),
    ],
)
def test_no_hdf5(tmp_path, content, message):
    path = tmp_path / "m.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"m\.h5 {message}"):
        read_model(path)


def test_folder(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        read_model(tmp_path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_truncated(path, kept):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw))])
    with pytest.raises(InputError, match=r"model\.h5 is (truncated|damaged)"):
        read_model(path)


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bytes_are_refused_or_harmless(path, model, seed):
    """Most bytes are weights; a flip elsewhere either breaks the structure or hits what is not part of the model."""
    rng = np.random.default_rng(seed)
    raw = bytearray(path.read_bytes())
    for place in rng.integers(0, len(raw), 3):
        raw[place] ^= 1 << rng.integers(8)
    path.write_bytes(raw)
    try:
        back = read_model(path)
    except InputError as exc:
        assert "model.h5" in str(exc)
    else:
        assert all(np.array_equal(back.weights[name], array) for name, array in model.weights.items())


# --- reading files whose parts do not fit --------------------------------------------------------------------------


def _attribute(name, value):
    return lambda file: file.attrs.__setitem__(name, value)


def _config(**changes):
    def damage(file):
        file.attrs["config"] = json.dumps(json.loads(file.attrs["config"]) | changes)

    return damage


def _replace(name, make):
    """Damage: delete an object and let `make(file, name)` put something else there."""

    def damage(file):
        del file[name]
        make(file, name)

    return damage


def _put(array, **options):
    return lambda file, name: file.create_dataset(name, data=array, **options)


def _external_storage(file, name):
    file.create_dataset(name, (24,), "float32", external=[("secret.bin", 0, h5py.h5f.UNLIMITED)])


def _virtual(file, name):
    layout = h5py.VirtualLayout((24,), "float32")
    layout[:] = h5py.VirtualSource("other.h5", "x", (24,))
    file.create_virtual_dataset(name, layout)


def _link(link):
    return lambda file, name: file.__setitem__(name, link)


def _add(name, array):
    return lambda file: file.__setitem__(name, array)


def _poke(name, value):
    def damage(file):
        file[name][0] = value

    return damage


BIAS = "weights/blocks.0.q.bias"
DAMAGES = [
    pytest.param(lambda f: f.attrs.__delitem__("format"), "no file of astra-mpi", id="foreign"),
    pytest.param(_attribute("format", 3), "no file of astra-mpi", id="odd-format"),
    pytest.param(_attribute("format", hdf5.CODEBOOKS), "is a codebook file; give a model file", id="codebook-file"),
    pytest.param(_attribute("version", 99), "format version 99.*upgrade", id="newer"),
    pytest.param(_attribute("version", "one"), "no integer attribute 'version'", id="odd-version"),
    pytest.param(_attribute("family", "mamba"), "unknown model family 'mamba'", id="family"),
    pytest.param(lambda f: f.attrs.__delitem__("family"), "no text attribute 'family'", id="no-family"),
    pytest.param(_attribute("config", "{not json"), "config does not describe a bert model", id="config-not-json"),
    pytest.param(_attribute("config", "[1]"), "config does not describe.*not a JSON object", id="config-list"),
    pytest.param(_config(colour=1), "unknown keys colour", id="config-key"),
    pytest.param(_config(n_heads=5), "not a multiple of n_heads", id="config-value"),
    pytest.param(_config(vocab_size="many"), "vocab_size", id="config-type"),
    pytest.param(_config(vocab_size=10**12), r"embed\.word has shape \(50, 24\)", id="config-huge"),
    pytest.param(_config(n_layers=10**12), "too few weights", id="config-many-blocks"),
    pytest.param(_config(normalize=True), "damaged or edited", id="config-edited"),
    pytest.param(lambda f: f.__delitem__("weights"), "/weights is missing", id="no-weights"),
    pytest.param(lambda f: f.__delitem__(BIAS), r"weight blocks\.0\.q\.bias is missing", id="missing"),
    pytest.param(_add("weights/extra", np.zeros(2, np.float32)), "weight extra is unknown", id="extra"),
    pytest.param(_replace(BIAS, _put(np.zeros(23, np.float32))), r"has shape \(23,\)", id="shape"),
    pytest.param(_replace(BIAS, _put(np.zeros(24))), "is float64; it must be float32 or float16", id="float64"),
    pytest.param(_replace(BIAS, _put(["a"] * 24)), "is object; it must be", id="object"),
    pytest.param(_replace(BIAS, _put(np.zeros(24, "f4,f4"))), "it must be float32", id="compound"),
    pytest.param(_replace(BIAS, _put(np.zeros(24, "f4"), compression="gzip")), "stored in chunks", id="compressed"),
    pytest.param(_replace(BIAS, lambda f, n: f.create_dataset(n, (24,), "f4")), "has no data", id="unwritten"),
    pytest.param(_replace(BIAS, lambda f, n: f.create_dataset(n, data=h5py.Empty("f4"))), "has no data", id="null"),
    pytest.param(_replace(BIAS, lambda f, n: f.create_group(n)), "is not a dataset", id="group"),
    pytest.param(_replace(BIAS, _link(h5py.SoftLink("/weights/blocks.0.k.bias"))), "is a link", id="soft-link"),
    pytest.param(_replace(BIAS, _link(h5py.ExternalLink("o.h5", "/x"))), "is a link", id="external-link"),
    pytest.param(_replace("weights", _link(h5py.ExternalLink("o.h5", "/x"))), "weights is a link", id="linked-group"),
    pytest.param(_replace(BIAS, _external_storage), "data in other files", id="external-storage"),
    pytest.param(_replace(BIAS, _virtual), "data in other files", id="virtual"),
    pytest.param(_poke(BIAS, np.nan), r"blocks\.0\.q\.bias has NaN", id="nan"),
    pytest.param(_poke(BIAS, -np.inf), r"blocks\.0\.q\.bias has NaN or inf", id="inf"),
    pytest.param(_poke(BIAS, 1.0), "damaged or edited", id="edited"),
    pytest.param(_poke("tokenizer/json", 255), "tokenizer/json is not UTF-8", id="tokenizer"),
    pytest.param(lambda f: f["preprocess"].attrs.__setitem__("json", "{"), "/preprocess is no JSON", id="preprocess"),
    pytest.param(lambda f: f["codec"].attrs.__delitem__("site"), "no text attribute 'site'", id="codec-site"),
    pytest.param(lambda f: f["codec"].attrs.__setitem__("stages", 3), "calibrate again", id="codec-stages"),
    pytest.param(lambda f: f["codec"].attrs.__setitem__("site", "normed"), "codec is damaged", id="codec-edited"),
    pytest.param(
        lambda f: f["codec"].attrs.__setitem__("kind", "tree"), "codec kind 'tree' is unknown", id="codec-kind"
    ),
    pytest.param(lambda f: f.__delitem__("codec/1"), "codec is damaged", id="codec-block-lost"),
    pytest.param(lambda f: f.__delitem__("codec/0"), "/codec/0 is missing", id="codec-first-block-lost"),
    pytest.param(_poke("codec/1/codebook", 9.0), "codec is damaged", id="codebook-edited"),
    pytest.param(_poke("codec/1/codebook", np.nan), "NaN", id="codebook-nan"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_refused(path, damage, message):
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InputError, match=message) as caught:
        read_model(path)
    assert "model.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_huge_shape_costs_no_memory(path):
    """A shape that both config and file claim, but for which the file has no data."""
    with h5py.File(path, "r+") as file:
        _config(vocab_size=10**12)(file)
        del file["weights/embed.word"]
        file.create_dataset("weights/embed.word", (10**12, 24), "float32", chunks=(1, 24))
    with pytest.raises(InputError, match=r"embed\.word is stored in chunks"):
        read_model(path)


# --- codebooks -----------------------------------------------------------------------------------------------------

CODECS = [
    CodecConfig(stages=3, codebook_size=5),
    CodecConfig(kind="grouped", groups=5, codebook_size=1),  # 24 / 5: padded
    CodecConfig(kind="grouped", groups=2, codebook_size=300, site="normed"),
    CodecConfig(stages=2, codebook_size=7, site="kv"),
    CodecConfig(stages=2, codebook_size=7, encoder="subspace"),
    CodecConfig(kind="grouped", codebook_size=7, site="kv", encoder="subspace"),
]


@pytest.mark.parametrize("codec_config", CODECS)
def test_codebook_file_round_trip(tmp_path, codec_config):
    codec = random_codec(bert_config(), codec_config)
    write_codebooks(tmp_path / "c.h5", codec, "abc", {"source": "x"})
    back = read_codebooks(tmp_path / "c.h5", "abc")
    assert back.digest == codec.digest
    assert back.blocks[1].width == codec.blocks[1].width


@pytest.mark.parametrize("codec_config", CODECS)
def test_codec_inside_a_model_file(tmp_path, codec_config):
    model = model_file(vit_config(), codec_config)
    write_model(tmp_path / "m.h5", model)
    assert read_model(tmp_path / "m.h5").codec.digest == model.codec.digest


def test_codebooks_of_another_model(tmp_path):
    write_codebooks(tmp_path / "c.h5", random_codec(bert_config(), CODECS[0]), "abc", {})
    with pytest.raises(InputError, match=r"c\.h5 holds codebooks of another model"):
        read_codebooks(tmp_path / "c.h5", "abd")


def test_model_file_is_no_codebook_file(path):
    with pytest.raises(InputError, match="is a model file; give a codebook file"):
        read_codebooks(path, "abc")


# --- info ----------------------------------------------------------------------------------------------------------


def test_info_of_a_model(path, model):
    facts = describe(path)
    assert facts["parameters"] == sum(array.size for array in model.weights.values())
    assert facts["weight_bytes"] == 4 * facts["parameters"]
    assert facts["digest"] == read_model(path).digest
    assert facts["codec"]["bits_per_token_per_block"] == 2 * 4
    assert facts["preprocess"] == {"max_tokens": 12}
    assert facts["provenance"] == SETTINGS["provenance"]
    json.dumps(facts)


def test_info_of_codebooks_and_results(tmp_path):
    write_codebooks(tmp_path / "c.h5", random_codec(bert_config(), CODECS[3]), "abc", {"source": "x"})
    facts = describe(tmp_path / "c.h5")
    assert (facts["base_digest"], facts["codec"]["codes_per_token"]) == ("abc", 4)
    with h5py.File(tmp_path / "r.h5", "w") as file:
        file["outputs/embed"] = np.zeros((3, 2), np.float32)
        file["outside"] = h5py.ExternalLink("c.h5", "/codec")
        file.attrs.update(format=hdf5.RESULTS, deck='{"run": {"batch": 8}}', n=3)
    facts = describe(tmp_path / "r.h5")
    assert facts["datasets"] == {"/outputs/embed": "float32 (3, 2)"}
    assert facts["attributes"] == {"deck": {"run": {"batch": 8}}, "n": 3}


def test_info_of_a_foreign_file(tmp_path):
    h5py.File(tmp_path / "f.h5", "w").close()
    with pytest.raises(InputError, match="no file of astra-mpi"):
        describe(tmp_path / "f.h5")
