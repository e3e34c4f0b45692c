"""Cut a text file, a folder of them, or Python's own documentation into passages, one JSON line each.

python jobs/passages.py MODEL.h5 OUT.jsonl [TEXT_FILE_OR_FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from astra_mpi.errors import InputError
from astra_mpi.files import whole
from astra_mpi.files.modelfile import read_model
from astra_mpi.files.utf8 import read_text
from astra_mpi.inputs.passages import passages
from astra_mpi.inputs.text import tokenizer_of

SUFFIXES = {".txt", ".md", ".rst", ".py", ".tex", ".html", ".csv", ".org", ".log"}
MAX_TOKENS = 256


def python_documentation() -> Iterator[tuple[str, str]]:
    """(topic, text) of the running interpreter's language reference."""
    from pydoc_data.topics import topics

    yield from sorted(topics.items())


def files(path: Path) -> Iterator[tuple[str, str]]:
    """(name, text) of a file, or of every text file below a folder."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{path}: no text files ({', '.join(sorted(SUFFIXES))}) in this folder")
    for file in found:
        yield str(file.relative_to(path.parent)), read_text(str(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("source", type=Path, nargs="?", help="text file or folder (default: Python's documentation)")
    args = parser.parse_args()
    model = read_model(args.model)
    tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
    longest = (model.preprocess or {}).get("max_tokens", model.config.max_positions)
    max_tokens = min(MAX_TOKENS, longest)
    sources = files(args.source) if args.source else python_documentation()
    items = [{"source": name, "text": p} for name, text in sources for p in passages(text, tokenizer, max_tokens)]
    if not items:
        raise InputError(f"{args.source}: no text in it")
    whole.write_text(args.out, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    print(f"{len(items)} passages of up to {max_tokens} tokens in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"passages: error: {error}")
