"""What weights may be stored as, in files and in memory. A format is a class of narrow matrices (`Narrow`): how it
rounds, what lies in a file, how it multiplies. Nothing elsewhere asks for one by its name.
"""

from __future__ import annotations

from typing import Any

from astra_mpi.registry import Registry

#: a new format is a line here and a file beside this one (docs/extend.md)
FORMATS = Registry(
    "astra_mpi.device.formats",
    {
        "float32": "floats:Float32",
        "float16": "floats:Float16",
        "bfloat16": "floats:BFloat16",
        "int8": "int8:Int8",
        "q8_0": "blocks:Q8_0",
        "q4_0": "blocks:Q4_0",
        "q4_1": "blocks:Q4_1",
    },
)
DTYPES = tuple(FORMATS)


def format_of(name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """The class of the format in which a model stored as `dtype` has weight `name`."""
    kind = FORMATS[dtype]
    return kind if kind.holds(name, shape) else FORMATS[kind.instead(name, shape)]
