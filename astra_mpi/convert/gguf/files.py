"""All files of a model that was split: `model-00001-of-00003.gguf` and its like."""

from __future__ import annotations

import re
from pathlib import Path

from astra_mpi.config import require
from astra_mpi.convert.gguf.header import Entry, Header, read_header

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 1000


def read_headers(path: Path) -> tuple[Header, list[Header]]:
    """-> (the header with the metadata, those of all files). InputError names a part that is missing."""
    found = _PART.fullmatch(path.name)
    if found is None:
        header = read_header(path)
        count = header.metadata.get("split.count", 0)
        require(
            count in (0, 1),
            f"{path} is one of {count} parts; give them the names that llama.cpp wrote, NAME-00001-of-{count:05}.gguf",
        )
        return header, [header]
    count = int(found[3])
    good = 1 <= count <= _MOST_PARTS
    require(good, f"{path} says that it is one of {count} parts, which no model has; download it again")
    paths = [path.with_name(f"{found[1]}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [part.name for part in paths if not part.is_file()]
    require(not missing, f"{path}: {', '.join(missing[:3])} of its {count} parts is missing; download it too")
    headers = [read_header(part) for part in paths]
    seen: dict[str, Entry] = {}
    for header in headers:
        said = header.metadata.get("split.count", count)
        require(said == count, f"{header.path} is one of {said} parts, not of {count}; download all parts again")
        twice = sorted(set(header.tensors) & set(seen))
        require(not twice, f"{header.path} has the tensor {', '.join(twice[:1])}, which another part has too")
        seen |= header.tensors
    total = headers[0].metadata.get("split.tensors.count", len(seen))
    require(total == len(seen), f"{path}: its parts have {len(seen)} tensors, not {total}; download all parts again")
    return headers[0], headers
