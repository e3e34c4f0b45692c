"""A job cut over independent runs, such as the tasks of a SLURM job array: the items and the output file of each.

`input.shard` is "I/N", or "array/N", where I is SLURM_ARRAY_TASK_ID. N is always written out: the variables of a job
array speak of the tasks submitted together, and a task submitted again alone would take itself for all of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from astra_mpi.config import require
from astra_mpi.decks.deck import Deck
from astra_mpi.errors import InputError
from astra_mpi.inputs.sources import Excerpt, Source
from astra_mpi.inputs.windows import WindowSource

_FORM = re.compile(r"(array|\d{1,9})/(\d{1,9})")


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """ "I/N" or "array/N" -> (I, N), 0 <= I < N. InputError with the cure."""
    found = _FORM.fullmatch(text)
    require(found is not None, f'input.shard = \'{text}\' does not fit; give "I/N", I from 0 to N - 1, or "array/N"')
    assert found is not None
    which, count = found[1], int(found[2])
    if which == "array":
        task = environment.get("SLURM_ARRAY_TASK_ID", "")
        require(
            task.isdecimal(),
            f"input.shard = '{text}' is for a SLURM job array, and SLURM_ARRAY_TASK_ID is not set; "
            f'submit with --array=0-{max(count - 1, 0)}, or give "I/{count}"',
        )
        which = task
    index = int(which)
    require(
        index < count,
        f"input.shard: there is no shard {index} of {count}, they are numbered from 0 to {count - 1}; "
        f"use --array=0-{max(count - 1, 0)}",
    )
    return index, count


def resolve(deck: Deck) -> Deck:
    """The deck of this shard: its number written out, and an output file of its own. Unchanged without input.shard."""
    if deck.input.shard is None:
        return deck
    index, count = parse_shard(deck.input.shard)
    path = shard_path(deck.output.path, index, count)
    return replace(deck, input=replace(deck.input, shard=f"{index}/{count}"), output=replace(deck.output, path=path))


def shard_path(output: Path, index: int, count: int) -> Path:
    """out.h5 -> out.03-of-16.h5: sorted by name they are in the order of their numbers."""
    return output.with_name(f"{output.stem}{_number(index, count)}{output.suffix}")


def _number(index: int, count: int) -> str:
    return f".{str(index).rjust(len(str(count - 1)), '0')}-of-{count}"


def other_shards(output: Path, shard: str) -> list[Path]:
    """Output files of the other shards, there or not; output: of this one, which is `shard`, "I/N"."""
    index, count = parse_shard(shard)
    whole = output.with_name(output.stem.removesuffix(_number(index, count)) + output.suffix)
    return [shard_path(whole, i, count) for i in range(count) if i != index]


def shard_items(n_items: int, shard: str | None, by: str) -> range:
    """The items of a shard: every N-th, or an N-th of them side by side, sizes differing by one at most."""
    if shard is None:
        return range(n_items)
    index, count = parse_shard(shard)
    if by == "strided":
        return range(min(index, n_items), n_items, count)
    return range(n_items * index // count, n_items * (index + 1) // count)


def take(source: Source, items: range) -> Source:
    """The source of these items only. InputError if there are none."""
    if items == range(source.n_items):
        return source
    if not items:
        raise InputError(
            f"this shard has no items, the input has {source.n_items}; use at most as many shards as items"
        )
    return source.part(items) if isinstance(source, WindowSource) else Excerpt(source, items)
