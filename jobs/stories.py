"""The steps of stories.sh that are its own: prompts, texts for calibration, and the comparison.

python jobs/stories.py begin WORK      begin.npy: stories that have only begun
python jobs/stories.py split WORK      of written.h5: written.jsonl for codebooks, beginnings.jsonl and unseen.txt
python jobs/stories.py compare WORK NAME..   texts side by side, bytes and times; the first NAME is compared to
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import h5py
import numpy as np

N_STORIES, N_UNSEEN, N_SHOWN, BEGIN = 96, 8, 2, 1  # BEGIN: <s> of llama2.c
COLUMN = 56


def begin(work: Path) -> None:
    np.save(work / "begin.npy", np.full((N_STORIES, 1), BEGIN, np.int32))


def split(work: Path) -> None:
    """The last N_UNSEEN stories give beginnings, two thirds of each, and a text; the others are for codebooks."""
    with h5py.File(work / "written.h5") as file:
        stories = [text.strip() for text in file["outputs/text"].asstr()]
    write_lines(work / "written.jsonl", stories[:-N_UNSEEN])
    unseen = stories[-N_UNSEEN:]
    write_lines(work / "beginnings.jsonl", [text[: text.rindex(" ", 0, 2 * len(text) // 3)] for text in unseen])
    (work / "unseen.txt").write_text("\n".join(unseen) + "\n", encoding="utf-8")


def write_lines(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")


def compare(work: Path, names: list[str]) -> None:
    prompts = [
        json.loads(line)["text"] for line in (work / "beginnings.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    tokens, texts, summaries, perplexities = {}, {}, {}, {}
    for name in names:
        with h5py.File(work / f"{name}.out.h5") as file:
            tokens[name], texts[name] = file["outputs/tokens"][()], list(file["outputs/text"].asstr())
        summaries[name] = json.loads((work / f"{name}.out.json").read_text())
        perplexities[name] = json.loads((work / f"{name}.perplexity.json").read_text())["metrics"]["perplexity"]
    for i in range(N_SHOWN):
        print(f"\n{textwrap.fill(prompts[i], 116)} ...\n")
        show({name: texts[name][i] for name in names})
    print(f"\n{'':<14}{'ranks':>6}{'bits':>7}{'prefill B':>11}{'decode B':>11}{'first ms':>10}{'token ms':>10}"
          f"{'cache':>8}{'same tokens':>13}{'perplexity':>12}")  # fmt: skip
    for name in names:
        print(row(name, summaries[name], tokens[name], tokens[names[0]], perplexities[name]))
    print("\nbits per token and block; bytes of all ranks; milliseconds per batch; cache: of the rank that keeps most,"
          " over all\nkeys and values; same tokens: of a text, before the first other one, mean")  # fmt: skip


def show(columns: dict[str, str]) -> None:
    """Equal texts once, two columns at a time."""
    together: dict[str, list[str]] = {}
    for name, text in columns.items():
        together.setdefault(text, []).append(name)
    blocks = [[", ".join(names), *wrapped(text)] for text, names in together.items()]
    for pair in (blocks[i : i + 2] for i in range(0, len(blocks), 2)):
        for line in range(max(map(len, pair))):
            cells = [block[line] if line < len(block) else "" for block in pair]
            print("    ".join(cell.ljust(COLUMN) for cell in cells).rstrip())
        print()


def wrapped(text: str) -> list[str]:
    return [line for part in text.strip().split("\n") for line in textwrap.wrap(part, COLUMN) or [""]]


def row(name: str, summary: dict, tokens: np.ndarray, exact: np.ndarray, perplexity: float) -> str:
    metrics, bits = summary["metrics"], summary["bits_per_token_per_block"]
    other = tokens != exact
    same = np.where(other.any(axis=1), other.argmax(axis=1), (exact >= 0).sum(axis=1)).mean()
    cache = max(metrics["cache_bytes"]) / metrics["full_cache_bytes"]
    first_ms, token_ms = 1e3 * metrics["first_token_s"], 1e3 * metrics["per_token_s"]
    bits = "-" if bits is None else round(bits, 1)
    return (
        f"{name:<14}{summary['ranks']:>6}{bits:>7}{sum(summary['contributed_bytes']):>11}"
        f"{sum(metrics['decode_bytes']):>11}{first_ms:>10.1f}{token_ms:>10.2f}"
        f"{cache:>8.1%}{same:>7.1f} of {(exact >= 0).sum(axis=1).mean():<3.0f}{perplexity:>11.3f}"
    )


if __name__ == "__main__":
    step, folder, *rest = sys.argv[1:] or [""]
    {"begin": begin, "split": split, "compare": compare}[step](Path(folder), *([rest] if rest else []))
