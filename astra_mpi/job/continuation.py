"""Generated token ids -> text, all at once or as it comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_mpi.config import require
from astra_mpi.inputs.text import Tokenizer

#: tokens before a stop text that are decoded with it, so that its first character comes out as in the whole text
_BEFORE = 4
#: tokens of a prompt that are decoded at each step with what is new: how that begins depends on the last ones
_CONTEXT = 64
_UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


def continuation(tokenizer: Tokenizer, prompt: np.ndarray, ids: np.ndarray) -> str:
    """What `ids` (n,) add to the text of `prompt` (T,): its first space is there if the prompt's text goes on so."""
    before = tokenizer.decode(prompt)
    after = tokenizer.decode(np.concatenate([prompt, ids]))
    pairs = enumerate(zip(before, after, strict=False))
    return after[next((i for i, (a, b) in pairs if a != b), min(len(before), len(after))) :]


class StopTexts:
    """Texts that end what is generated, of any number of tokens. A function of the new ids alone, so that every rank
    comes to the same end."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        """InputError on an empty text."""
        require(all(texts), "a stop text is empty, and would end every text before it begins; leave it out")
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        self._n_tokens = max((len(text.encode()) for text in texts), default=0) + _BEFORE

    def __call__(self, ids: np.ndarray) -> bool:
        """Whether new ids (n,) end with a token that completes one of the texts."""
        tail = self.tokenizer.decode(ids[-self._n_tokens :])
        return any(text in tail for text in self.texts)

    def cut(self, text: str) -> str:
        """A text up to where the first of them begins."""
        return text[: min((text.index(stop) for stop in self.texts if stop in text), default=len(text))]

    def held(self, text: str) -> int:
        """Characters at its end that may be the beginning of one."""
        sizes = (n for stop in self.texts for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n]))
        return max(sizes, default=0)


class TextStream:
    """The text of one sequence, piece by piece: together the pieces are its `continuation`.

    The whole sequence is decoded at each step, for spaces and characters of several tokens come out right only so.
    Where a model writes bytes that are no characters, a tokenizer of Llama's kind takes back whole characters before
    them; what was returned stays.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray, stops: StopTexts | None = None) -> None:
        """stops: of which none is shown, nor what comes after it."""
        self._tokenizer, self._prompt, self._stops = tokenizer, prompt[-_CONTEXT:], stops
        self._ids: list[int] = []
        self._n_shown = 0

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token, beyond what was returned before; often empty."""
        self._ids.append(token_id)
        text = self._text().rstrip(_UNFINISHED)
        return self._new(text[: len(text) - (self._stops.held(text) if self._stops else 0)])

    def finish(self) -> str:
        """What was held back."""
        return self._new(self._text())

    def _text(self) -> str:
        text = continuation(self._tokenizer, self._prompt, np.array(self._ids, np.int32))
        return self._stops.cut(text) if self._stops else text

    def _new(self, text: str) -> str:
        new = text[self._n_shown :]
        self._n_shown += len(new)
        return new
