"""JSON Lines: an object per line, or a pair of texts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.inputs.chat import MESSAGES, ChatTemplate, check_messages
from astra_mpi.inputs.kinds.kind import Taker
from astra_mpi.inputs.kinds.texts import LineKind
from astra_mpi.inputs.records import PAIR, TextOf, begins_with_field

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class JsonLines(LineKind):
    """.jsonl files."""

    suffixes = (".jsonl",)

    @classmethod
    def row(cls, where: str, line: str, header: list[str] | None) -> dict[str, Any]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{where}: not valid JSON ({exc}); each line is one JSON object") from exc
        if isinstance(row, list) and len(row) == 2:
            return {"text": row[0], PAIR: row[1]}
        require(isinstance(row, dict), f"{where}: each line is one JSON object, this is {type(row).__name__}")
        return dict(row)

    @classmethod
    def text_of(cls, section: InputSection, model: Taker) -> TextOf | None:
        """input.dataset says that items are messages, or the first line does."""
        if section.dataset is None and not begins_with_field(section.path, MESSAGES, instead_of="text"):
            return None
        if section.dataset not in (None, MESSAGES):
            return None
        template = ChatTemplate(model.preprocess)
        return lambda where, value: template.render(check_messages(where, value))
