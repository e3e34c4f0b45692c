"""What weights may be stored as, in files and in memory. A format is a class of narrow matrices (`Narrow`): how it
rounds, what lies in a file, how it multiplies. Nothing elsewhere asks for one by its name.
"""

from astra_mpi.registry import Registry

#: a new format is a line here and a file beside this one (docs/extend.md)
FORMATS = Registry(
    "astra_mpi.device.formats",
    {
        "float32": "floats:Float32",
        "float16": "floats:Float16",
        "bfloat16": "floats:BFloat16",
        "int8": "int8:Int8",
    },
)
DTYPES = tuple(FORMATS)
