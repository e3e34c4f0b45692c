"""Small batch jobs."""

import numpy as np

from astra_mpi.files.modelfile import ModelFile, write_model
from helpers.fakes import bert_config, gpt2_config, model_file
from helpers.tokenizers import TEXT, byte_tokenizer

N_ITEMS = 11


def write_texts(folder, n_items=N_ITEMS):
    draw = np.random.default_rng(3)
    letters = sorted(set(TEXT) - {" "})
    lines = ["".join(draw.choice(letters, 1 + 3 * i % 17)) for i in range(n_items)]
    (folder / "in.txt").write_text("\n".join(lines) + "\n")


def write_job(folder, task="embed"):
    """A small model with codebooks, a text and a deck for them."""
    config = bert_config() if task == "embed" else gpt2_config()
    file = model_file(config)
    limits = {"max_tokens": 12}
    write_model(folder / "model.h5", ModelFile(config, file.weights, file.codec, byte_tokenizer(), limits))
    if task == "embed":
        write_texts(folder)
    else:
        (folder / "in.txt").write_text(TEXT)
    (folder / "deck.toml").write_text(
        f'[model]\npath = "model.h5"\n[input]\npath = "in.txt"\nkind = "text"\n[task]\nname = "{task}"\n'
        '[parallel]\nstrategy = "single"\n[run]\nbatch = 2\n[output]\npath = "out.h5"\n'
    )


PROMPTS = ["a cab", "bad old lion fold", "k", "fad aid.", "a", "po man in a den", "lid"]


N_NEW = 9
