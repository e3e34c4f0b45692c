"""The tables of docs/reference/checkpoints.md, from what the families state and read (differential.py --docs)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import differential_config
import image_models

from astra_mpi.checkpoint.reference import ASIDE, BASE, GUARDED, HARMLESS
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.convert import generation as hf_generation
from astra_mpi.convert.hugging_face import convert
from astra_mpi.models import CHECKPOINTS
from astra_mpi.models.encoders import ENCODERS
from astra_mpi.strategies import STRATEGIES, forms, parse

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "checkpoints.md"
ONLY = "refused unless it has the value in brackets"
UNLESS = "refused unless it is missing, `null` or the value in brackets"
CODEC: Any = SimpleNamespace(config=CodecConfig())  # strategies ask little more than whether there is one
BEGIN, END = "<!-- made by jobs/checks/differential.py --docs -->", "<!-- end -->"


def write() -> None:
    """Put the tables where the page has them."""
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    PAGE.write_text(f"{head}{BEGIN}\n{tables()}{END}{rest.split(END)[1]}")


def tables() -> str:
    """A table per model_type, then those that all share."""
    parts = [f"\n### {name}\n\n{_table(_family(name))}" for name in CHECKPOINTS]
    parts.append(f"\n### Image encoders: what a model file computes\n\n{_image_table()}")
    parts.append(f"\n### Every family\n\n{_table(_shared())}")
    parts.append(f"\n### Text encoders and strategies\n\n{_strategies()}")
    parts.append(f"\n### Generation\n\n{_table(_generation())}\n")
    return "".join(parts)


def _table(rows: Iterator[tuple[str, str]]) -> str:
    return "| what happens | keys |\n|---|---|\n" + "".join(f"| {what} | {keys} |\n" for what, keys in rows if keys)


def _family(name: str) -> Iterator[tuple[str, str]]:
    stated, table = CHECKPOINTS[name].reference, differential_config.TABLES[name]()
    with tempfile.TemporaryDirectory() as folder:
        table.make(Path(folder))
        read = table.read_here(Path(folder)) - {"model_type", "architectures", "auto_map", "quantization_config"}
    yield "used", _keys(read)
    only = {key: stated.fields[key] for key in stated.fields if key not in read and not stated.why_harmless(key)}
    yield ONLY, ", ".join(f"`{key}` ({_shown(value)})" for key, value in sorted(only.items()))
    guarded = {key: values for key, values in stated.guarded.items() if key not in read}
    yield UNLESS, _guarded(guarded)
    yield "another name of a field", ", ".join(f"`{a}` (of `{b}`)" for a, b in sorted(stated.aliases.items()))
    own = {key: why for key, why in stated.harmless.items() if key not in read}
    own |= {key: HARMLESS[key] for key in stated.fields if key in HARMLESS and key not in read}
    yield from _reasons(own)
    yield "architectures", _keys(stated.architectures)


def _image_table() -> str:
    """A row per model_type and class of transformers: class tokens, answer, strategies that cannot be used."""
    lines = ["| model_type, class | class tokens, registers | answer | strategies |", "|---|---|---|---|"]
    for name, kind, settings in image_models.KINDS:
        config = image_models.config_of(kind, settings)
        tokens = f"{config.class_tokens}, {config.registers}"
        lines.append(f"| `{name}`, {kind} | {tokens} | {image_models.answer(config)} | {_usable(config)} |")
    return "\n".join(lines) + "\n"


def _usable(config: Any) -> str:
    """Of 2 ranks and a model with codebooks."""
    refused = [name for name in forms_of_all() if STRATEGIES[parse(name).name].obstacle(parse(name), config, CODEC, 2)]
    return f"all but {', '.join(f'`{name}`' for name in refused)}" if refused else "all"


def forms_of_all() -> list[str]:
    return [form for name in STRATEGIES for form in forms(name)]


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
    yield "refused, whatever its value", "`quantization_config`; `auto_map` of a model or its configuration"
    read = {"architectures", "id2label"}
    only = {key: value for key, value in BASE.items() if key not in {*HARMLESS, *ASIDE, *read}}
    yield ONLY, ", ".join(f"`{key}` ({_shown(value)})" for key, value in sorted(only.items()))
    yield UNLESS, _guarded(GUARDED)
    families = {key for reader in CHECKPOINTS.values() for key in reader.reference.fields}
    yield from _reasons({key: why for key, why in HARMLESS.items() if key not in families})
    yield f"ignored with a note: {next(iter(ASIDE.values()))}", _keys(ASIDE)
    yield "ignored with a note", "any other key"


def _generation() -> Iterator[tuple[str, str]]:
    yield "used", "`eos_token_id`"
    yield "ignored with a note: `generate` has its own options", _keys(hf_generation.OWN)
    yield "ignored with a note: `generate` does not have it", _keys(hf_generation.ABSENT)
    yield "ignored with a note if `do_sample` is true", _keys(hf_generation.ABSENT_SAMPLING)
    yield from _reasons({key: why for key, why in hf_generation.HARMLESS.items() if key != "eos_token_id"})


def _reasons(harmless: dict[str, str]) -> Iterator[tuple[str, str]]:
    for why in dict.fromkeys(harmless.values()):
        yield f"no effect: {why}", _keys(key for key in harmless if harmless[key] == why)


def _guarded(guarded: Any) -> str:
    rows = []
    for key, values in sorted(guarded.items()):
        shown = ", ".join(map(_shown, values))
        rows.append(f"`{key}` ({shown})" if shown else f"`{key}`")
    return ", ".join(rows)


def _keys(keys: Any) -> str:
    return ", ".join(f"`{key}`" for key in sorted(keys))


def _shown(value: Any) -> str:
    return f"`{json.dumps(value)}`"
