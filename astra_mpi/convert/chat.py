"""The chat template of a Hugging Face folder, as `transformers` finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_mpi.convert.tokenizer_files import CONFIG, optional_object
from astra_mpi.errors import InputError
from astra_mpi.inputs.template import MAX_LENGTH

FILE, FOLDER = "chat_template.jinja", "additional_chat_templates"


def read_chat_template(folder: Path) -> tuple[str | dict[str, str] | None, list[str]]:
    """-> (the template, several by name, or None; notes). Files come before what tokenizer_config.json says.

    InputError names what is no template.
    """
    files = [folder / FILE] if (folder / FILE).is_file() else []
    files += sorted((folder / FOLDER).glob("*.jinja"))
    found: Any = {"default" if path.name == FILE else path.stem: _read(path) for path in files}
    if not found:
        found = optional_object(folder / CONFIG).get("chat_template")
        if isinstance(found, list):
            found = _named(found, folder / CONFIG)
    if isinstance(found, dict) and found.keys() == {"default"}:
        found = found["default"]
    good = isinstance(found, str | None) or all(isinstance(text, str) for text in found.values())
    if not good:
        raise InputError(f"{folder / CONFIG}: chat_template is neither a text nor a list of named texts; correct it")
    length = sum(map(len, found.values())) if isinstance(found, dict) else len(found or "")
    if length > MAX_LENGTH:
        return None, [f"{folder}: its chat template of {length} characters was left aside; {MAX_LENGTH} are kept"]
    return found or None, []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError(f"{path} cannot be read ({exc}); download it again") from exc


def _named(entries: list[Any], path: Path) -> dict[str, Any]:
    try:
        return {str(entry["name"]): entry["template"] for entry in entries}
    except (TypeError, KeyError) as exc:
        raise InputError(f"{path}: an entry of chat_template has no name or no template; correct it") from exc
