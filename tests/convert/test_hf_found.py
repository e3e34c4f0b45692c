"""What is no checkpoint of Hugging Face is named, with what to do."""

import json
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from astra_mpi.cli import main
from astra_mpi.convert.hugging_face import convert
from astra_mpi.errors import InputError

INDEX = "model.safetensors.index.json"


def gpt2(folder, **options):
    torch.manual_seed(0)
    config = dict(n_embd=12, n_head=2, n_layer=2, n_positions=9, vocab_size=11, bos_token_id=0, eos_token_id=0)
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).save_pretrained(folder, **options)


def refusal(source):
    with pytest.raises(InputError) as caught:
        convert(source)
    return str(caught.value)


FOUND = [
    ("model.Q4_K_M.gguf", "a GGUF file; give that file instead of the folder"),
    ("model.onnx", "export to ONNX.*made from"),
    ("onnx/model.onnx", "export to ONNX.*made from"),
    ("pytorch_model.bin", r"pickle of PyTorch.*never loaded.*save_pretrained"),
    ("pytorch_model-00001-of-00002.bin", "pickle of PyTorch"),
    ("consolidated.00.pth", "pickle of PyTorch"),
    ("model.ckpt", "pickle of PyTorch"),
    ("tf_model.h5", "TensorFlow's.*transformers 4"),
    ("flax_model.msgpack", "Flax's.*transformers 4"),
    ("weights.npz", "MLX's"),
    ("model.fp16.safetensors", r"another name; rename it to model\.safetensors"),
    ("consolidated.safetensors", "Mistral's own layout"),
    ("model-00001-of-00003.safetensors", r"a shard, and model\.safetensors\.index\.json is missing"),
    ("model_index.json", "diffusers pipeline, which is not supported"),
    ("training_args.bin", "give a folder with safetensors weights"),
]


@pytest.mark.parametrize(("name", "message"), FOUND)
def test_other_weights_are_named(tmp_path, name, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    for file in ("config.json", name):
        (tmp_path / file).write_text("{}")
    assert re.search(rf"no model\.safetensors and .*{message}", refusal(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.gguf", b"GGUF", "not a folder: a GGUF file"),
        ("model.safetensors", b"", "give the folder that it is in"),
        ("config.json", b"{}", "give the folder that it is in"),
        ("a.txt", b"", "not a folder: a file; give a Hugging Face folder"),
    ],
)
def test_a_file_instead_of_a_folder(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_a_pickle_is_no_checkpoint_of_llama2c(tmp_path, capsys):
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert main(["convert", str(tmp_path / "pytorch_model.bin"), str(tmp_path / "m.h5")]) == 2
    assert "is a pickle of PyTorch, not a checkpoint of llama2.c" in capsys.readouterr().err


def test_a_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal("sentence-transformers/all-MiniLM-L6-v2")
    assert "`hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir all-MiniLM-L6-v2`" in said


def test_a_folder_around_the_model(tmp_path):
    inside = tmp_path / "snapshots" / "0123abcd"
    gpt2(inside)
    assert f"but the folder {inside} in it has; give it" in refusal(tmp_path)


def test_links_of_the_hub_cache(tmp_path):
    gpt2(tmp_path / "blobs", max_shard_size="4KB")
    (tmp_path / "snapshot").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(Path("..") / "blobs" / path.name)
    linked, straight = convert(tmp_path / "snapshot")[0], convert(tmp_path / "blobs")[0]
    assert linked.provenance["source_sha256"] == straight.provenance["source_sha256"]


def test_a_pointer_of_git_lfs(tmp_path):
    gpt2(tmp_path)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert "is a pointer of Git LFS, not the file itself; run `git lfs pull`" in refusal(tmp_path)


def adapter(folder):
    settings = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


def test_an_adapter_beside_the_model(tmp_path):
    gpt2(tmp_path)
    adapter(tmp_path)
    said = refusal(tmp_path)
    assert "LORA) beside weights" in said and "merge_and_unload" in said and "remove adapter_config.json" in said


def test_an_adapter_alone(tmp_path):
    adapter(tmp_path)
    said = refusal(tmp_path)
    assert "its base is some/base" in said and "merge_and_unload" in said


def test_quantised_tensors_are_called_so(tmp_path):
    gpt2(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({name: tensor.to(torch.uint8) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    assert "is U8, as in quantised checkpoints; give the checkpoint" in refusal(tmp_path)


def shards(folder):
    """-> (index, its tensors' shards) of a model in several files."""
    gpt2(folder, max_shard_size="4KB")
    index = json.loads((folder / INDEX).read_text())
    return index, index["weight_map"]


def test_shards_in_a_folder_of_their_own(tmp_path):
    index, where = shards(tmp_path)
    (tmp_path / "weights").mkdir()
    for shard in set(where.values()):
        (tmp_path / shard).rename(tmp_path / "weights" / shard)
    index["weight_map"] = {name: f"weights/{shard}" for name, shard in where.items()}
    (tmp_path / INDEX).write_text(json.dumps(index))
    files = json.loads(convert(tmp_path)[0].provenance["source_sha256"])
    assert sorted(files) == sorted({f"weights/{shard}" for shard in where.values()})


def test_a_sharded_folder_is_not_searched_for_other_weights(tmp_path, monkeypatch):
    shards(tmp_path)

    def searched(folder):
        raise AssertionError("a search through the folder")

    monkeypatch.setattr("astra_mpi.checkpoint.folder.no_weights", searched)
    assert convert(tmp_path)[0].config.family == "gpt2"


def test_an_index_that_names_what_a_shard_has_not(tmp_path):
    index, where = shards(tmp_path)
    first, second = sorted(set(where.values()))[:2]
    name = next(name for name, shard in where.items() if shard == first)
    where[name] = second
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert f"says that {second} has the tensor {name}, and it has not" in refusal(tmp_path)


def test_a_tensor_in_two_shards(tmp_path):
    """The index decides; without its word there is no telling which one counts."""
    index, where = shards(tmp_path)
    first, second = sorted(set(where.values()))[:2]
    name = next(name for name, shard in where.items() if shard == first)
    tensors, others = load_file(tmp_path / first), load_file(tmp_path / second)
    save_file(others | {name: tensors[name] + 1}, tmp_path / second)
    straight = tmp_path / "straight"
    shards(straight)
    weights, expected = convert(tmp_path)[0].weights, convert(straight)[0].weights
    assert all((weights[key] == expected[key]).all() for key in expected)
    del where[name]
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert f"has {name}, which another shard has too" in refusal(tmp_path)
