"""Valid files of every kind that is read, for jobs/faults/fuzz.py and its tests to damage (fuzz_damage.py)."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from fuzz_gguf import write_gguf

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.files.codecfile import write_codebooks
from astra_mpi.files.modelfile import ModelFile, write_model
from astra_mpi.job.results import Results
from astra_mpi.models import FAMILIES
from astra_mpi.models.bert_config import BertConfig
from astra_mpi.models.encoders.encoder import EncoderConfig
from astra_mpi.models.llama import LlamaConfig
from astra_mpi.models.vision.vit import ViTConfig

SMALL = dict(d_model=24, n_layers=2, d_ff=32, norm_eps=1e-5)
BERT = BertConfig(**SMALL, n_heads=3, n_kv_heads=3, activation="gelu", vocab_size=40, max_positions=16)
LLAMA = LlamaConfig(**SMALL, n_heads=4, n_kv_heads=2, activation="silu", vocab_size=300, max_positions=16)
#: of pairs of texts, whose tokens have types
PAIRS = replace(BERT, pooling="pooler", has_pooler=True, n_classes=2, labels=("a", "b"))
#: with all that rotary encoders may have
ENCODER = EncoderConfig(
    **SMALL, n_heads=4, n_kv_heads=2, activation="gelu", vocab_size=40, max_positions=16, embed_norm=True,
    plain_start=True, windows=(0, 3), rope_local_theta=50.0, dense_widths=(7,), dense_activations=("tanh",),
    pooling="last",
)  # fmt: skip
VIT = ViTConfig(
    **SMALL,
    n_heads=3,
    n_kv_heads=3,
    activation="gelu",
    image_size=(8, 8),
    patch_size=4,
    channels=3,
    n_classes=3,
)
STATE = {"task.name": "embed", "model_digest": "m", "codec_digest": "c", "run.batch": 2, "input_items": 6}
DECK = """
[model]
path = "model.h5"
[input]
path = "tokens.npz"
kind = "tokens"
mask = "lengths"
[task]
name = "embed"
pooling = "mean"
[parallel]
compute = "bfloat16"
strategy = "sp:kv:int8"
weights = [1, 2.5]
network = "10Mbps,rtt=2ms,loss=1%"
deadline = "5ms"
[run]
batch = 4
seed = 3
threads = 1
watchdog = "60s"
[output]
path = "out.h5"
"""
CHAT_TEMPLATE = """{%- set ns = namespace(n=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('one system message') }}
    {%- endif %}
    {%- set ns.n = ns.n + message.content|length * 2 %}
    {{- bos_token + message['role'] + '\\n' + message.content|trim + '\\n' }}
    {%- for i in range(3) %}
        {%- if i > 1 %}{% break %}{% endif %}
        {{- [ns.n, i]|tojson }}
    {%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant' * 2 ** 2 }}{% endif %}
"""
SWEEP = """
[model]
preset = "vit-tiny"
[sweep]
strategies = ["single", "sp", "astra"]
networks = ["10Mbps"]
ranks = [1, 2]
[output]
path = "sweep.json"
"""
TRAIN = """
[model]
path = "model.h5"
[data]
train = "tokens.npz"
kind = "tokens"
[train]
steps = 10
[output]
path = "trained.h5"
"""


def weights_of(config: Any) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        n: draw.normal(0, 0.2, s).astype(np.float32) for n, s in FAMILIES[config.family].weight_shapes(config).items()
    }


def codec_of(config: Any, site: str = "hidden") -> Codec:
    draw = np.random.default_rng(1)
    width = config.d_kv if site == "kv" else config.d_model
    books = 2 if site == "kv" else 1
    entries = [draw.normal(0, 1, (2, 8, width)).astype(np.float32) for _ in range(config.n_layers * books)]
    basis = np.linalg.qr(draw.normal(size=(width, width // 2)))[0].astype(np.float32)
    made = [Codebook("residual", e, width, None if i else basis) for i, e in enumerate(entries)]
    blocks = tuple(BlockCodec(tuple(made[i * books : (i + 1) * books])) for i in range(config.n_layers))
    return Codec(CodecConfig(site=site, stages=2, codebook_size=8), blocks)


def tokenizer_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"])}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return str(fast.to_str())


def write_all(folder: Path) -> None:
    """A valid file of every kind in `folder`."""
    write_model(
        folder / "model.h5", ModelFile(BERT, weights_of(BERT), codec_of(BERT), tokenizer_json(), {"max_tokens": 9})
    )
    write_model(folder / "encoder.h5", ModelFile(ENCODER, weights_of(ENCODER), codec_of(ENCODER)))
    write_model(folder / "pairs.h5", ModelFile(PAIRS, weights_of(PAIRS), codec_of(PAIRS)))
    write_model(folder / "llama.h5", ModelFile(LLAMA, weights_of(LLAMA), codec_of(LLAMA, "kv")))
    pixels = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}
    digest = write_model(folder / "vit.h5", ModelFile(VIT, weights_of(VIT), codec_of(VIT), None, pixels))
    write_codebooks(folder / "codebooks.h5", codec_of(VIT), digest, {"source": "x"})
    for name, text in (("deck", DECK), ("sweep", SWEEP), ("train", TRAIN)):
        (folder / f"{name}.toml").write_text(text)
    _write_inputs(folder)
    _write_llama2c(folder)
    write_gguf(folder / "llama.gguf")
    _write_hugging_face(folder / "hf")
    _write_results(folder)
    speeds = dict(gemm=1e10, attention=1e10, encode=1e10, table=1e9, elements=1e9, block_s=1e-4)
    ones = [[1.0, 1.0], [1.0, 1.0]]
    typed = {"int8": {"speeds": speeds | {"weights": 1e9}}}
    profile = {"ranks": [{"speeds": speeds, "compute": typed}] * 2, "links": {"rtt_s": ones, "bandwidth_bps": ones}}
    (folder / "profile.json").write_text(json.dumps(profile))


def _write_inputs(folder: Path) -> None:
    draw = np.random.default_rng(2)
    ids, lengths = draw.integers(0, 40, (6, 12), dtype=np.int32), draw.integers(1, 12, 6)
    images = draw.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    labels = np.array([0, 1, 2, 1])
    np.savez(folder / "tokens.npz", tokens=ids, lengths=lengths)
    np.savez_compressed(folder / "packed.npz", tokens=ids, lengths=lengths)
    np.save(folder / "tokens.npy", ids)
    np.savez(folder / "images.npz", images=images, labels=labels)
    with h5py.File(folder / "tokens.h5", "w") as file:
        file.create_dataset("tokens", data=ids, chunks=(2, 12), compression="gzip")
        file["lengths"] = lengths
    with h5py.File(folder / "images.h5", "w") as file:
        file["images"], file["labels"] = images, labels
    rows = [{"text": f"ab {i} cd", "label": i % 2} for i in range(5)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs: list[Any] = [{"text": "ab", "text_pair": f"cd {i}"} for i in range(3)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*pairs, ["ab", "ef"]]))
    (folder / "texts.tsv").write_text("text\tlabel\n" + "".join(f"ab {i}\t{i % 2}\n" for i in range(5)))
    (folder / "texts.txt").write_text("ab cd\nef gh ij\n\nkl\n")
    talk = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}]
    (folder / "talks.jsonl").write_text(f"{json.dumps({'messages': talk})}\n" * 4)
    (folder / "chat").mkdir()
    (folder / "chat" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    (folder / "trace.csv").write_text("time_s,mbps\n" + "".join(f"{i},{10 + i}\n" for i in range(6)))
    from PIL import Image

    (folder / "pictures").mkdir()
    for i, (pixels, kind) in enumerate(zip(images, ("png", "jpg", "png", "jpg"), strict=True)):
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.{kind}")
    (folder / "pictures" / "classes.tsv").write_text(
        "".join(f"{i}.{k}\t{i % 3}\n" for i, k in enumerate(("png", "jpg", "png", "jpg")))
    )


def _write_llama2c(folder: Path) -> None:
    c = LLAMA
    shapes = [(c.vocab_size, 24), (2, 24), (2, 24, 24), (2, 12, 24), (2, 12, 24), (2, 24, 24), (2, 24)]
    shapes += [(2, 32, 24), (2, 24, 32), (2, 32, 24), (24,), (16, 3), (16, 3)]
    n = sum(int(np.prod(shape)) for shape in shapes)
    header = struct.pack("<7i", 24, 32, 2, 4, 2, c.vocab_size, 16)
    (folder / "llama.bin").write_bytes(header + np.random.default_rng(3).normal(0, 0.1, n).astype("<f4").tobytes())
    pieces = [
        "<unk>",
        "\n<s>\n",
        "\n</s>\n",
        *(f"<0x{i:02X}>" for i in range(256)),
        *(chr(97 + i % 26) * (1 + i // 26) for i in range(41)),
    ]
    body = b"".join(struct.pack("<fi", -float(i), len(p.encode())) + p.encode() for i, p in enumerate(pieces))
    (folder / "tokenizer.bin").write_bytes(struct.pack("<i", 16) + body)


def _write_hugging_face(folder: Path) -> None:
    from safetensors.numpy import save_file

    folder.mkdir()
    settings = dict(model_type="bert", architectures=["BertModel"], hidden_size=24, num_attention_heads=3)
    settings |= dict(num_hidden_layers=2, intermediate_size=32, hidden_act="gelu", layer_norm_eps=1e-12)
    settings |= dict(vocab_size=40, max_position_embeddings=16, type_vocab_size=2, position_embedding_type="absolute")
    (folder / "config.json").write_text(json.dumps(settings))
    family: Any = FAMILIES["bert"]
    tensors = {}
    for name, array in weights_of(BERT).items():
        linear = name.endswith(".weight") and array.ndim == 2 and not name.startswith("embed")
        source = family.hf_weights(BERT)[name].name
        tensors[source] = np.ascontiguousarray(array.T if linear else array)
    save_file(tensors, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    (folder / "modules.json").write_text(
        json.dumps(
            [{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": "x.Pooling", "path": "pool"}]
        )
    )
    (folder / "pool").mkdir()
    (folder / "pool" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def _write_results(folder: Path) -> None:
    costs = {name: [1, 1] for name in ("contributed_bytes", "formula_bytes", "port_bytes")}
    costs |= {"paper_bytes": 1, "other_bytes": 1, "distinct_keys": None, "missing": None}
    costs |= {"latency_s": {"total": 1.0, "compute": 1.0, "exchange_wait": 0.0, "phases": {}}}
    summary = {
        "items": 6,
        "tokens": 30,
        "metrics": {"forward_s": 1.0},
        "choices": {},
        "versions": {},
        "deck": {},
        **costs,
    }
    for name in ("done.h5", "begun.h5"):
        results = Results(folder / name, STATE, range(6), 2, True)
        for part in range(3):
            first, last = results.span(part)
            results.write(part, {"embedding": np.zeros((last - first, 4), np.float32)}, {"choices": {}})
        if name == "done.h5":
            results.join(summary, {"run": {}})
        results.close()
