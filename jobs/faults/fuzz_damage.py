"""Damage for jobs/faults/fuzz.py: bytes, JSON, lines of TOML and HDF5 objects, changed at random."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.files import checksum

_NUMBERS = [0, 1, -1, 2, 7, 127, 255, 256, 1 << 15, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 62]
_VALUES: list[Any] = [*_NUMBERS, -(1 << 31), 10**30, 1.5, -0.0, float("nan"), float("inf"), 1e308, None, True, "", "x"]
_VALUES += ["a" * 5000, "../../x", "\0", "é\ud800", [], {}, [[]], [0] * 1000, {"a": {"b": []}}, "1e999", "0x10", "-1"]


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """A few of: flipped bits, other numbers, pieces cut out, doubled, swapped, cut off, put in."""
    raw = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        if not raw:
            return draw.randbytes(draw.randrange(64))
        i = draw.randrange(len(raw))
        kind = draw.randrange(8)
        n = min(draw.choice([1, 2, 4, 8, 32, 512]), len(raw) - i)
        if kind == 0:
            raw[i] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[i : i + n] = draw.randbytes(n)
        elif kind == 2:
            width = draw.choice([1, 2, 4, 8])
            number = draw.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            raw[i : i + width] = number.to_bytes(width, draw.choice(["little", "big"]))
        elif kind == 3:
            del raw[i : i + n]
        elif kind == 4:
            raw[i:i] = raw[i : i + n] * draw.choice([1, 2, 50])
        elif kind == 5:
            del raw[i:]
        elif kind == 6:
            j = draw.randrange(len(raw))
            raw[i : i + n], raw[j : j + n] = raw[j : j + n], raw[i : i + n]
        else:
            raw[i:i] = draw.choice(
                [b"\0", b"\xff", b"\n", b"\r", b'"', b"[" * 3000, b"\xef\xbb\xbf", b"9" * 5000, b"\t"]
            )
    return bytes(raw)


def damage_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with one place replaced, removed, doubled or nested."""
    places = list(_places(value))
    if not places or draw.random() < 0.03:
        return draw.choice(_VALUES)
    holder, key = draw.choice(places)
    kind = draw.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[draw.choice(["", "x", "__class__", "family", "n_layers"])] = holder[key]
    elif kind == 2:
        for _ in range(draw.choice([1, 30, 3000])):
            holder[key] = [holder[key]]
    elif kind == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
        holder[key] = draw.choice([holder[key] + 1, holder[key] - 1, -holder[key], holder[key] * 1000, holder[key] / 3])
    else:
        holder[key] = draw.choice(_VALUES)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found.append((value, key))
        found += _places(inner)
    return found


def dump_json(value: Any) -> str:
    """JSON of values that may be nested deeper than `json.dumps` goes."""
    depth = 0
    while isinstance(value, list) and len(value) == 1:
        value, depth = value[0], depth + 1
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "[" * 3000 + "]" * 3000
    return "[" * depth + text + "]" * depth


def damage_json(data: bytes, draw: random.Random) -> bytes:
    value = json.loads(data)
    for _ in range(draw.choice([1, 1, 2, 3])):
        value = damage_value(value, draw)
    return dump_json(value).encode(errors="surrogatepass")


def damage_lines(data: bytes, draw: random.Random) -> bytes:
    """Lines of text exchanged, or their words replaced."""
    lines = data.decode().split("\n")
    for _ in range(draw.choice([1, 2, 3])):
        i = draw.randrange(len(lines))
        kind = draw.randrange(5)
        if kind == 0:
            lines[i] = lines[draw.randrange(len(lines))]
        elif kind == 1:
            del lines[i]
            lines = lines or [""]
        elif kind == 2:
            head, equals, _ = lines[i].partition("=")
            lines[i] = f"{head}{equals or draw.choice(['=', ' '])} {_toml(draw)}"
        elif kind == 3:
            lines[i] = lines[i].replace(
                draw.choice("aeiou1,=\t"), draw.choice(["", "9" * 400, "\t", ",", "[" * 2000, "é"])
            )
        else:
            lines.insert(
                i, draw.choice(["[x]", "[[model]]", "a.b.c = 1", "path = 1", "x = " + _toml(draw), "\0", "1e999,nan"])
            )
    return "\n".join(lines).encode(errors="surrogatepass")


def _toml(draw: random.Random) -> str:
    texts = [
        "[" * 4000,
        "{a = {b = 1}}",
        "1979-05-27T07:32:00Z",
        "nan",
        "-inf",
        "[1, 'a', []]",
        "''",
        "0x7fffffffffffffffff",
    ]
    texts += [
        "true",
        "-1",
        "0",
        "1e400",
        '"sp:kv:int8:x"',
        '"10Mbps,rtt=-1ms"',
        '"trace:/dev/zero"',
        '"../../../x"',
        "9" * 5000,
    ]
    texts += ['"array/0"', '"0/0"', '"1e999s"', "[" + "1," * 5000 + "]", '"\\u0000"', "{}", "[]"]
    return draw.choice(texts)


def damage_hdf5(data: bytes, draw: random.Random) -> bytes:
    """A file whose structure is sound and whose contents are not: attributes, shapes, types, links."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        for _ in range(draw.choice([1, 1, 2])):
            _damage_object(file, draw)
        if draw.random() < 0.7:
            if "digest" in file.attrs:
                _sign(file)
            with suppress(InputError, KeyError, TypeError, ValueError, OSError, RuntimeError):
                file.attrs[checksum.NAME] = checksum.contents(file)
    return buffer.getvalue()


def _damage_object(file: h5py.File, draw: random.Random) -> None:
    names: list[str] = []
    file.visit(names.append)
    name = draw.choice([*names, "/"])
    item = file[name]
    kind = draw.randrange(9)
    if kind <= 3 and len(item.attrs):
        key = draw.choice(list(item.attrs))
        text = item.attrs[key]
        try:
            value = damage_value(json.loads(text), draw) if isinstance(text, str) and text[:1] in "{[" else None
            item.attrs[key] = draw.choice(_VALUES[:20]) if value is None else dump_json(value)
        except (TypeError, ValueError, OverflowError, OSError):
            item.attrs[key] = np.zeros((2, 2))
        return
    if name == "/":
        file.attrs[draw.choice(["family", "version", "format", "x"])] = draw.choice(["bert", "vit", 1, 10**6, b"x"])
        return
    parent, leaf = item.parent, name.rpartition("/")[2]
    shape = getattr(item, "shape", (2,))
    del parent[leaf]
    if kind == 4:
        parent[leaf] = draw.choice(
            [h5py.SoftLink("/" + name), h5py.SoftLink("/weights"), h5py.ExternalLink("vit.h5", "/weights")]
        )
    elif kind == 5:
        parent.create_dataset(
            leaf, (10 ** draw.randrange(1, 13), *shape[1:]), draw.choice(["f4", "u1", "i4"]), chunks=True
        )
    elif kind == 6:
        parent.create_dataset(
            leaf,
            data=np.zeros(draw.choice([(), (0,), (3, 0), (1 << 20,), shape]), draw.choice(["f4", "f8", "i8", "u1"])),
        )
    elif kind == 7:
        parent.create_dataset(leaf, (2,), h5py.string_dtype())
    else:
        big = np.zeros((1 << 12, 1 << 12), np.uint8)
        parent.create_dataset(leaf, data=big, chunks=big.shape, compression="gzip", compression_opts=9)


def _sign(file: h5py.File) -> None:
    """A digest that fits, as a forger would write it."""
    if not isinstance(file.get("weights"), h5py.Group):  # to go through a dataset of 10**12 rows takes a while
        return
    try:
        sha = hashlib.sha256(f"{file.attrs['family']}\n{file.attrs['config']}\n".encode())
        for name in sorted(file["weights"]):
            array = file["weights"][name]
            if array.size > 1 << 22:
                return
            sha.update(f"{name} {array.shape}\n".encode())
            sha.update(np.ascontiguousarray(array[()], "<f4").data)
        file.attrs["digest"] = sha.hexdigest()
    except (KeyError, TypeError, ValueError, AttributeError, OSError):
        return


Damage = Callable[[bytes, random.Random], bytes]
