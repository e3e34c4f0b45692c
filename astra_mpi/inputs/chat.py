"""A conversation as the prompt that its model was trained on: messages -> the model's own template -> token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files.utf8 import undecodable
from astra_mpi.inputs.template import render

Message = Mapping[str, Any]
#: the field of a JSON line that holds a conversation
MESSAGES = "messages"


class ChatTemplate:
    """The template of a model file's `preprocess`: its `chat_template`, a text or several by name, and the texts of its
    `special_tokens`.

    name: which of several; None: the one called "default". InputError where there is none.
    """

    def __init__(self, preprocess: Mapping[str, Any] | None, name: str | None = None) -> None:
        settings = preprocess or {}
        self.source = _chosen(settings.get("chat_template"), name)
        tokens = settings.get("special_tokens", {})
        good = isinstance(tokens, dict) and all(isinstance(text, str) for text in tokens.values())
        require(good, "the special tokens of the model file are damaged; convert the model again")
        self.special_tokens: dict[str, str] = dict(tokens)

    def render(self, messages: Sequence[Message], answers: bool = True) -> str:
        """The conversation as text. answers: with what begins an answer of the assistant. InputError."""
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        more = {"tools": None, "documents": None, "add_generation_prompt": answers}
        return render(self.source, {**self.special_tokens, "messages": plain, **more})


def _chosen(found: Any, name: str | None) -> str:
    if isinstance(found, str) and found:
        require(name in (None, "default"), f"template '{name}': this model has one template without a name")
        return found
    if not found:
        raise InputError(
            "the model has no chat template, so nobody knows how it was told who speaks; convert a chat or instruct"
            " model, or give a plain prompt to generate"
        )
    good = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
    require(good, "the chat templates of the model file are damaged; convert the model again")
    wanted = name or "default"
    if wanted not in found:
        raise InputError(f"the model has no chat template '{wanted}'; choose one of {', '.join(sorted(found))}")
    return str(found[wanted])


def check_messages(where: str, messages: Any) -> list[dict[str, Any]]:
    """A list of messages with `role` and `content`. InputError says where it is none."""
    require(
        isinstance(messages, list) and bool(messages),
        f'{where}: messages are a list of objects such as {{"role": "user", "content": "Hello"}}',
    )
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        require(isinstance(role, str), f"{where}: message {i} has no role; give system, user or assistant")
        content = message.get("content")
        require(
            isinstance(content, str | list) or "tool_calls" in message,
            f"{where}: message {i} ({role}) has no content; give a text",
        )
        bad = undecodable(json.dumps(message, ensure_ascii=False))
        require(not bad, f"{where}: message {i}: {bad}; correct it")
    return messages
