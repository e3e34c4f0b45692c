"""Talking to a model: lines of a person on rank 0, its answers as they come, one conversation on all ranks."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from astra_mpi.config import require
from astra_mpi.decode.conversation import Conversation
from astra_mpi.decode.drafts.source import draft_of
from astra_mpi.decode.request import Request
from astra_mpi.errors import collective
from astra_mpi.inputs.chat import ChatTemplate, Message
from astra_mpi.inputs.text import Tokenizer, tokenizer_of
from astra_mpi.job.continuation import TextStream, continuation
from astra_mpi.job.generation import Generator, end_tokens
from astra_mpi.ranks.broadcast import broadcast_ids
from astra_mpi.ranks.terminal import raise_if_lost

if TYPE_CHECKING:
    from astra_mpi.engine import Model
    from astra_mpi.ranks.signals import Interrupts


class ChatPrompts:
    """Messages -> token ids, as a model's file says. InputError where it has no template or no tokenizer."""

    def __init__(self, model: Model, template: str | None = None) -> None:
        self.template = ChatTemplate(model.preprocess, template)
        self.tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size)
        self.max_positions: int = model.config.max_positions

    def ids(self, messages: Sequence[Message], where: str = "the conversation") -> np.ndarray:
        """(T,) int32, up to where the answer begins. InputError where there is no room for one."""
        row = self.tokenizer.encode_plain(self.template.render(messages), where)
        require(len(row) > 0, f"{where}: the model's chat template makes nothing of it; give other messages")
        room = len(row) < self.max_positions
        require(room, f"{where} has {len(row)} tokens and this model {self.max_positions} positions; shorten it")
        return row


def chat_end_tokens(model: Model, tokenizer: Tokenizer) -> list[int]:
    """A model's end tokens, and the token that its templates end a turn with where they use `eos_token`."""
    named = (model.preprocess or {}).get("special_tokens", {}).get("eos_token")
    own = None if named is None else tokenizer.special_id(named)
    return list(dict.fromkeys([*end_tokens(model), *([] if own is None else [own])]))


@dataclass
class Answer:
    """What a model said, and what it took."""

    text: str
    tokens: list[int]
    report: dict[str, Any] = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """Of people's interest, as numbers."""
        made, kept = self.report["generation"], self.report["conversation"]
        told = sum(kept["told_bytes"])
        later, drafts = made["per_token_s"]["mean"], made.get("drafts")
        return {
            "first_token_s": made["first_token_s"] + kept.get("told_s", 0.0),
            "tokens_per_s": None if later is None else 1 / later,
            "new_tokens": made["new_tokens"][0],
            "prompt_tokens": self.report["tokens"][0],
            "kept_tokens": kept["kept_tokens"],
            "contributed_bytes": sum(self.report["contributed_bytes"]) + told,
            "tokens_per_pass": None if drafts is None else drafts["tokens_per_pass"],
            "cache_bytes": made["cache_bytes"],
            "ended": made["ended"][0],
        }


def in_words(figures: Mapping[str, Any]) -> str:
    """One line."""
    speed, at_once = figures["tokens_per_s"], figures["tokens_per_pass"]
    parts = [
        f"first token {figures['first_token_s']:.2f} s",
        *([] if speed is None else [f"{speed:.1f} tokens/s"]),
        *([] if at_once is None else [f"{at_once:.2f} tokens per pass"]),
        f"{figures['new_tokens']} tokens, ended by {figures['ended']}",
        f"{figures['prompt_tokens']} tokens read, {figures['kept_tokens']} kept",
        f"{figures['contributed_bytes']} bytes contributed",
    ]
    return "; ".join(parts)


class Dialogue:
    """One conversation: the same messages and calls on all ranks; text is printed by rank 0."""

    def __init__(
        self, model: Model, generator: Generator, prompts: ChatPrompts, system: str = "", out: TextIO | None = None
    ) -> None:
        """generator: of whose settings all but the stop tokens are taken as they are. out: where rank 0 prints."""
        self.model, self.generator, self.prompts, self.system = model, generator, prompts, system
        self.root, self.out = model.comm.Get_rank() == 0, out
        extra = [] if generator.task.ignore_end else chat_end_tokens(model, prompts.tokenizer)
        self.stop = tuple(dict.fromkeys([*generator.stop, *extra]))
        self.restart()

    def restart(self, goes_on: bool = True) -> None:
        """Forget what was said. goes_on: False before a message that is the only one."""
        self.conversation = Conversation(self.model, goes_on)
        self.messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []

    def check(self) -> None:
        """InputError where a first message could not be answered, as where a template has no system prompt."""
        self.prompts.ids([*self.messages, {"role": "user", "content": "Hello"}])

    def say(self, text: str, interrupts: Interrupts | None = None) -> Answer:
        """Collective: the model's answer to a message, printed as it comes. After an error, nothing was said."""
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = None
        with collective(self.model.comm):
            if self.root:
                ids = self.prompts.ids(messages).astype(np.int64)
        ids = broadcast_ids(self.model.comm, ids)
        shown = None
        if self.root:
            shown = Shown(TextStream(self.prompts.tokenizer, ids, self.generator.stop_texts), self.stop, self.out)
        request = Request(
            self.generator.max_new_tokens,
            self.generator.sampler([sum(message["role"] == "user" for message in messages) - 1]),
            self.stop,
            self.generator.decode,
            shown,
            self.generator.stop_texts,
            None if interrupts is None else interrupts.__bool__,
            self.generator.task.far,
            draft_of(self.generator.draft, self.model),
            self.generator.draft_tokens,
        )
        new = self.conversation.say(ids, request)
        with collective(self.model.comm):
            if shown is not None:
                shown.close()
        said = self._text(ids, new)
        self.messages = [*messages, {"role": "assistant", "content": said}]
        return Answer(said, new.tolist(), self.model.report)

    def _text(self, ids: np.ndarray, new: np.ndarray) -> str:
        kept = new[:-1] if len(new) and new[-1] in self.stop else new
        text = continuation(self.prompts.tokenizer, ids, kept)
        stops = self.generator.stop_texts
        return stops.cut(text) if stops is not None else text


class Shown:
    """An answer on standard output as it comes, without the prompt; called with each step. Only rank 0 has one."""

    def __init__(self, text: TextStream, stop: Sequence[int], out: TextIO | None) -> None:
        self._text, self._stop, self._out = text, stop, out or sys.stdout

    def __call__(self, step: int, ids: np.ndarray) -> None:
        if ids[0] >= 0 and ids[0] not in self._stop:
            self._print(self._text.push(int(ids[0])))

    def close(self) -> None:
        """What was held back, and the end of the line."""
        self._print(self._text.finish() + "\n")

    def _print(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
        if self._out is sys.stdout:
            raise_if_lost(self._out)
