"""What [input] can name: the table of input kinds, by `input.kind` and how they lie on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from astra_mpi.registry import Registry

#: "input.kind/what it is on disk" -> class; a new input kind is a line here and a file in inputs/kinds (docs/extend.md)
INPUTS = Registry(
    "astra_mpi.inputs.kinds",
    {
        "text/lines": "lines:TextLines",
        "text/json-lines": "json_lines:JsonLines",
        "text/table": "tab_separated:TabSeparated",
        "tokens/arrays": "token_arrays:TokenArrays",
        "images/arrays": "image_arrays:ImageArrays",
        "images/folder": "image_files:ImageFiles",
    },
)
#: the values of `input.kind`
INPUT_KINDS = tuple(sorted({name.partition("/")[0] for name in INPUTS}))
if TYPE_CHECKING:
    InputWord = str
else:  # for decks
    InputWord = Literal[INPUT_KINDS]
