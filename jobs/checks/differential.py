"""Is every setting of a checkpoint folder honoured, or refused by name? Each is changed alone and asked of both.

    python jobs/checks/differential.py                    # all of it: tables, text and images
    python jobs/checks/differential.py llama gpt2         # some tables
    python jobs/checks/differential.py text images        # differential_text.py, differential_images.py
    python jobs/checks/differential.py --docs             # docs/reference/checkpoints.md anew

A table (differential_config.py) is a folder that the reference loads, changes of its files one at a time,
and how the reference and this project answer. A change is right if

- the project gives the reference's answer within 1e-4, or
- `convert` refuses with a sentence that names the key, or
- the reference has no answer either (it fails, or makes up weights) and `convert` refuses, or
- the key is stated to be harmless, and the reference's answer is in fact the same as without the change, or
- the key is stated to be left aside with a note, and a note names it.

A refusal of what leaves the reference's answer as it was is right too, and counted apart. Prints a line per change and
totals; exit code 1 if one is wrong, in any part. Needs the extra `test`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from astra_mpi.convert.check.libraries import first_line
from astra_mpi.errors import InputError

ATOL = 1e-4
#: two ways to compute the same differ by less
ROUNDING = 1e-5
#: verdict on a refusal of what the reference answers as without the change
NEEDLESS = "refused, though the answer is the same"
#: as the value of a change: the key is taken out
MISSING = object()


@dataclass(frozen=True)
class Change:
    """One key of one JSON file of a folder with another value, or without one."""

    key: str
    value: Any
    file: str = "config.json"
    beside: tuple[tuple[str, Any], ...] = ()  # further keys that are changed with it, so that it has an effect

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        values = json.loads(path.read_text()) if path.exists() else {}
        values |= dict([*self.beside, (self.key, self.value)])
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not MISSING}))

    def __str__(self) -> str:
        return f"{self.key} = {'missing' if self.value is MISSING else json.dumps(self.value)}"


class Table(Protocol):
    """A folder, its changes and who answers. Answers are arrays."""

    name: str

    def make(self, folder: Path) -> None:
        """Write the folder that both sides read."""

    def changes(self) -> Iterator[Change]:
        """All of them."""

    def expected(self, folder: Path) -> np.ndarray | None:
        """The reference's answer; None, or any exception, where it has none of its own."""

    def got(self, folder: Path) -> tuple[np.ndarray, list[str]]:
        """This project's answer and the notes of `convert`. InputError where it refuses."""

    def stated(self, key: str) -> str:
        """ "harmless", "aside" (left aside with a note), or nothing."""

    def excused(self, change: Change) -> bool:
        """Whether the reference fails on the change for a reason that is not a fault of the folder."""
        return False


@dataclass(frozen=True)
class Row:
    """What became of a change."""

    change: Change
    verdict: str  # honoured, no effect, refused, NEEDLESS, harmless, noted; WRONG
    detail: str

    @property
    def right(self) -> bool:
        return self.verdict != "WRONG"


def check(table: Table, select: Callable[[Table], Iterable[Change]] | None = None) -> Iterator[Row]:
    """A row per change, as they come; `select` some of the table's."""
    with tempfile.TemporaryDirectory() as name:
        base = Path(name) / "base"
        base.mkdir()
        table.make(base)
        unchanged = table.expected(base)
        assert unchanged is not None, "the reference has no answer for the folder as it is"
        for change in (select or type(table).changes)(table):
            folder = Path(name) / "changed"
            shutil.copytree(base, folder)
            after, before = folder / change.file, base / change.file
            change.apply(folder)
            if not before.exists() or json.loads(before.read_bytes()) != json.loads(after.read_bytes()):
                yield judge(table, change, folder, unchanged)
            shutil.rmtree(folder)


def judge(table: Table, change: Change, folder: Path, unchanged: np.ndarray) -> Row:
    """Both sides asked, and what follows."""
    refusal, named = None, False
    try:
        got, notes = table.got(folder)
    except InputError as exc:
        refusal = str(exc).replace(str(folder), "FOLDER")
        named = names(change.key, refusal)
    try:
        expected = table.expected(folder)
        why = "" if expected is not None else "the reference makes up weights"
    except Exception as exc:  # whatever a library raises on what it does not like
        expected, why = None, f"the reference fails: {first_line(exc)[:100]}"
    if refusal is not None and not named and expected is not None:
        return Row(change, "WRONG", f"{refusal} (key not named)")
    if refusal is not None:
        same = expected is not None and distance(expected, unchanged) <= ROUNDING
        return Row(change, NEEDLESS if same else "refused", f"{refusal} {why}".strip())
    noted = any(names(change.key, note) for note in notes)
    stated = table.stated(change.key)
    if stated == "aside" and noted:
        return Row(change, "noted", "")
    if expected is None:
        excused = stated == "harmless" or table.excused(change)
        return Row(change, "harmless" if excused else "WRONG", why)
    moved, wrong = distance(expected, unchanged), distance(expected, got)
    if wrong > ATOL:
        return Row(change, "WRONG", f"the reference's answer is {wrong:.2e} away")
    if stated == "harmless" and moved > ROUNDING:
        return Row(change, "WRONG", f"stated to be harmless, but moves the reference's answer by {moved:.2e}")
    if stated == "harmless":
        return Row(change, "harmless", "")
    verdict = "honoured" if moved > ROUNDING else "noted" if noted else "no effect"
    return Row(change, verdict, f"moves by {moved:.1e}, error {wrong:.1e}")


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference; infinite between arrays of different shapes."""
    return float(np.abs(a - b).max(initial=0)) if a.shape == b.shape else np.inf


def names(key: str, message: str) -> bool:
    """Whether a message has this key as a word, not as a part of another."""
    return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", message) is not None


def silence() -> None:
    """Libraries that say nothing of odd folders, and ask nothing of the network."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "RUST_BACKTRACE": "0"}
    import transformers

    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def check_table(name: str, make: Callable[[], Table]) -> int:
    """A line per change and the totals, printed -> how many are wrong."""
    rows = []
    for row in check(make()):
        rows.append(row)
        print(f"{name:10} {row.verdict:9} {row.change}   {row.detail}"[:200], flush=True)
    counts = Counter(row.verdict for row in rows)
    print(f"{name}: {len(rows)} changes: {', '.join(f'{n} {verdict}' for verdict, n in sorted(counts.items()))}")
    return counts["WRONG"]


def parts() -> dict[str, Callable[[], int]]:
    """By name what prints a part's rows and gives the number of its findings."""
    import differential_config
    import differential_images
    import differential_text

    tables = {name: partial(check_table, name, make) for name, make in differential_config.TABLES.items()}
    return {**tables, "text": differential_text.findings, "images": differential_images.findings}


def main() -> int:
    every = parts()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(every)} (default all)")
    parser.add_argument(
        "--docs", action="store_true", help="write the tables of docs/reference/checkpoints.md, check nothing"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.parts) - set(every))
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}")
    if args.docs:
        import differential_docs

        differential_docs.write()
        return 0
    silence()
    wrong = {name: every[name]() for name in args.parts or every}
    print(json.dumps({"wrong": sum(wrong.values()), "of": wrong}))
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
