"""The tables of docs/reference/checkpoints.md, from what the families state and read (differential.py --docs)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import differential_config

from astra_mpi.checkpoint.reference import ASIDE, BASE, GUARDED, HARMLESS
from astra_mpi.codec.codebook import Codec
from astra_mpi.config import CodecConfig
from astra_mpi.convert import generation as hf_generation
from astra_mpi.convert.hugging_face import convert
from astra_mpi.models import MODEL_TYPES
from astra_mpi.models.encoders import ENCODERS
from astra_mpi.strategies import STRATEGIES, parse

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md"
BEGIN, END = "<!-- made by jobs/checks/differential.py --docs -->", "<!-- end -->"


def write() -> None:
    """Put the tables where the page has them."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{tables()}{END}{rest.split(END)[1]}")


def tables() -> str:
    """A table per model_type, then those that all share."""
    parts = [f"\n### {name}\n\n{_table(_family(name))}" for name in MODEL_TYPES]
    parts.append(f"\n### Every family\n\n{_table(_shared())}")
    parts.append(f"\n### Text encoders and strategies\n\n{_strategies()}")
    parts.append(f"\n### Generation\n\n{_table(_generation())}\n")
    return "".join(parts)


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "| what becomes of it | keys |\n|---|---|\n" + "".join(
        f"| {what} | {keys} |\n" for what, keys in rows if keys
    )


def _family(name: str) -> Iterator[tuple[str, str]]:
    stated, table = MODEL_TYPES[name].reference, differential_config.TABLES[name]()
    with tempfile.TemporaryDirectory() as folder:
        table.make(Path(folder))
        read = table.read_here(Path(folder)) - {"model_type", "architectures", "auto_map", "quantization_config"}
    yield "honoured", _keys(read)
    only = {key: stated.fields[key] for key in stated.fields if key not in read and not stated.why_harmless(key)}
    yield "refused unless", ", ".join(f"`{key}` is {_shown(value)}" for key, value in sorted(only.items()))
    guarded = {key: values for key, values in stated.guarded.items() if key not in read}
    yield "refused unless missing, null or as here", _guarded(guarded)
    yield "the same by another name", ", ".join(f"`{a}`: `{b}`" for a, b in sorted(stated.aliases.items()))
    own = {key: why for key, why in stated.harmless.items() if key not in read}
    own |= {key: HARMLESS[key] for key in stated.fields if key in HARMLESS and key not in read}
    yield from _reasons(own)
    yield "architectures", _keys(stated.architectures)


def _strategies() -> str:
    """What 3 ranks can use, and else why not; tests/models/test_encoders_mpi.py holds it against the oracle."""
    codec, reasons = Codec(CodecConfig(site="kv"), ()), list[str]()
    lines = ["| model_type | family | " + " | ".join(f"`{name}`" for name in STRATEGIES) + " |"]
    lines.append("|---" * (2 + len(STRATEGIES)) + "|")
    for kind in ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            differential_config.TABLES[kind.model_type]().make(Path(folder))
            config = convert(folder)[0].config
        cells = []
        for name, strategy in STRATEGIES.items():
            reason = strategy.obstacle(parse(name), config, codec, 3)
            if reason and reason not in reasons:
                reasons.append(reason)
            cells.append(f"{reasons.index(reason) + 1}" if reason else "yes")
        lines.append(f"| {kind.model_type} | {config.family} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(f"{i}. {reason}" for i, reason in enumerate(reasons, 1))]) + "\n"


def _shared() -> Iterator[tuple[str, str]]:
    yield "refused, whatever it says", "`quantization_config`; `auto_map` of a model or its configuration"
    read = {"architectures", "id2label"}
    only = {key: value for key, value in BASE.items() if key not in {*HARMLESS, *ASIDE, *read}}
    yield "refused unless", ", ".join(f"`{key}` is {_shown(value)}" for key, value in sorted(only.items()))
    yield "refused unless missing, null or as here", _guarded(GUARDED)
    families = {key for kind in MODEL_TYPES.values() for key in kind.reference.fields}
    yield from _reasons({key: why for key, why in HARMLESS.items() if key not in families})
    yield f"left aside with a note: {next(iter(ASIDE.values()))}", _keys(ASIDE)
    yield "any other key", "noted"


def _generation() -> Iterator[tuple[str, str]]:
    yield "honoured", "`eos_token_id`"
    yield "left aside with a note, for `generate` has options of its own", _keys(hf_generation.OWN)
    yield "left aside with a note, for `generate` does not have it", _keys(hf_generation.ABSENT)
    yield "the same, beside `do_sample`", _keys(hf_generation.ABSENT_SAMPLING)
    yield from _reasons({key: why for key, why in hf_generation.HARMLESS.items() if key != "eos_token_id"})


def _reasons(harmless: dict[str, str]) -> Iterator[tuple[str, str]]:
    for why in dict.fromkeys(harmless.values()):
        yield f"harmless: {why}", _keys(key for key in harmless if harmless[key] == why)


def _guarded(guarded: Any) -> str:
    rows = []
    for key, values in sorted(guarded.items()):
        rows.append(f"`{key}`" + "".join(f" or {_shown(value)}" for value in values))
    return ", ".join(rows)


def _keys(keys: Any) -> str:
    return ", ".join(f"`{key}`" for key in sorted(keys))


def _shown(value: Any) -> str:
    return f"`{json.dumps(value)}`"
