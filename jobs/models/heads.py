"""Two small classifiers to try `classify` and `rerank` on: MiniLM with heads fitted to the few examples below.

python jobs/models/heads.py MINILM_FOLDER OUT
Writes Hugging Face folders OUT/topics (BertForSequenceClassification of three topics) and OUT/relevance (one class:
does a passage answer a question). They are stand-ins for a model of your own: so few examples teach them little.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
from mpi4py import MPI
from safetensors.numpy import load_file, save_file

import astra_mpi
from astra_mpi.convert.hugging_face import convert
from astra_mpi.files.modelfile import write_model
from astra_mpi.inputs.sources import padded
from astra_mpi.inputs.text import tokenizer_of

TOPICS = {
    "weather": ["Rain is expected tonight.", "A storm moves in from the sea.", "The sun shone all week."],
    "sport": ["She won the race by a second.", "The team scored in the last minute.", "He trains for the marathon."],
    "cooking": ["Fry the onions in butter.", "Let the dough rest for an hour.", "The soup needs more salt."],
}
ANSWERS = {
    "How long does the dough rest?": "Let the dough rest for an hour before you bake it.",
    "Who won the race?": "She won the race by a second.",
    "Will it rain tonight?": "The forecast says that rain is expected tonight.",
    "What does the soup need?": "The soup needs more salt and a little pepper.",
}
#: of the layer before the classifier: small, so that tanh bends little
SCALE = 0.1
RIDGE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilm", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    texts = [text for some in TOPICS.values() for text in some]
    topics = np.repeat(np.eye(len(TOPICS)), [len(some) for some in TOPICS.values()], axis=0)
    pairs = [(question, answer) for question in ANSWERS for answer in ANSWERS.values()]
    right = np.eye(len(ANSWERS)).reshape(-1, 1)
    for name, items, targets, labels in (("topics", texts, topics, list(TOPICS)), ("relevance", pairs, right, ["yes"])):
        features = first_tokens(args.minilm, args.out, items)
        write(args.minilm, args.out / name, *fit(np.tanh(SCALE * features), 8 * targets - 4), labels)
        print(f"{args.out / name}: a classifier of {len(labels)} {'class' if len(labels) == 1 else 'classes'}")


def first_tokens(folder: Path, out: Path, items: list) -> np.ndarray:
    """MiniLM's last hidden states of the first tokens, (n, D)."""
    out.mkdir(parents=True, exist_ok=True)
    file = convert(folder)[0]
    write_model(out / "minilm.h5", file)
    model = astra_mpi.load(
        str(out / "minilm.h5"), comm=MPI.COMM_SELF, strategy="single", pooling="cls", normalize=False
    )
    preprocess = dict(file.preprocess or {}, token_types=True)
    tokenizer = tokenizer_of(file.tokenizer, file.config.vocab_size, preprocess=preprocess, type_vocab=2)
    (out / "minilm.h5").unlink()
    return model(*padded(tokenizer.encode_typed(items, file.config.max_positions)))


def fit(x: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression of targets (n, C) on x (n, D) -> weight (C, D), bias (C,)."""
    mean = x.mean(axis=0)
    gram = (x - mean) @ (x - mean).T + RIDGE * np.eye(len(x))
    weight = (np.linalg.solve(gram, targets - targets.mean(axis=0)).T @ (x - mean)).astype(np.float32)
    return weight, (targets.mean(axis=0) - weight @ mean).astype(np.float32)


def write(source: Path, folder: Path, weight: np.ndarray, bias: np.ndarray, labels: list[str]) -> None:
    """The checkpoint in `source` with this classifier, as a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*token*"):
        shutil.copy(path, folder / path.name)
    for path in source.glob("vocab*"):
        shutil.copy(path, folder / path.name)
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(labels))}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = load_file(source / "model.safetensors")
    d = weight.shape[1]
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items() if "pooler" not in name}
    tensors |= {
        "pooler.dense.weight": SCALE * np.eye(d, dtype=np.float32),
        "pooler.dense.bias": np.zeros(d, np.float32),
    }
    tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    save_file(tensors | {"classifier.weight": weight, "classifier.bias": bias}, folder / "model.safetensors")


if __name__ == "__main__":
    main()
