"""Input files written, and read back as sequences."""

from pathlib import Path
from types import SimpleNamespace

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from astra_mpi.decks.deck import InputSection
from astra_mpi.inputs.opening import open_input

TEXT_MODEL = SimpleNamespace(family="bert", vocab_size=50, max_positions=6)


IMAGE_MODEL = SimpleNamespace(family="vit", image_size=(4, 6), channels=3, n_classes=10)


PREPROCESS = {"size": [4, 6], "mean": [0.5] * 3, "std": [0.25] * 3}


def tokenizer() -> str:
    words = FastTokenizer(WordLevel({word: i for i, word in enumerate(["?", "a", "b", "c", "d", "e"])}, "?"))
    words.pre_tokenizer = Whitespace()
    return words.to_str()


def read(path: Path, kind: str, config=None, preprocess=PREPROCESS, **keys):
    config = config or (IMAGE_MODEL if kind == "images" else TEXT_MODEL)
    return open_input(InputSection(path=path, kind=kind, **keys), tokenizer(), preprocess, config)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sequences(source) -> list[list[int]]:
    ids, mask = source.batch(0, source.n_items)
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]
