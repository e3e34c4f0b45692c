"""Text as UTF-8: files, arguments, and what keeps a text from it."""

from __future__ import annotations

import os
from pathlib import Path

from astra_mpi.errors import InputError


def undecodable(text: str) -> str:
    """What keeps `text` from being Unicode: a byte of an argument or name, half a character of JSON; "" if nothing."""
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        code = ord(text[exc.start])
        if 0xDC80 <= code <= 0xDCFF:  # how Python passes on what it cannot decode
            return f"byte 0x{code - 0xDC00:02X} behind {exc.start} characters is not UTF-8"
        return f"\\u{code:04x} behind {exc.start} characters is half of a character"
    return ""


def argument_text(argument: str) -> str:
    """An argument as text, UTF-8 whatever the locale. InputError, without a name for it, if it is not."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise InputError(f"{undecodable(argument)}; give it in UTF-8") from None


def read_text(path: str | Path) -> str:
    """The contents of a UTF-8 file, without a byte order mark. InputError names the file, and the byte if it is not."""
    try:
        raw = Path(path).read_bytes()
    except OSError as exc:
        raise InputError(f"{path} cannot be read ({exc.strerror}); check the path") from exc
    try:
        return raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{path} is not UTF-8 at byte {exc.start}; convert it, for example with iconv -f latin1 -t utf-8"
        ) from exc
