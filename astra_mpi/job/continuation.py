"""Generated token ids -> text, all at once or as it comes."""

from __future__ import annotations

import numpy as np

from astra_mpi.inputs.text import Tokenizer

_UNFINISHED = "\ufffd"  # what a tokenizer makes of the first bytes of a character


def continuation(tokenizer: Tokenizer, prompt: np.ndarray, ids: np.ndarray) -> str:
    """What `ids` (n,) add to the text of `prompt` (T,): its first space is there if the prompt's text goes on so."""
    before = tokenizer.decode(prompt)
    after = tokenizer.decode(np.concatenate([prompt, ids]))
    pairs = enumerate(zip(before, after, strict=False))
    return after[next((i for i, (a, b) in pairs if a != b), min(len(before), len(after))) :]


class TextStream:
    """The text of one sequence, piece by piece: together the pieces are its `continuation`.

    The whole sequence is decoded at each step, for spaces and characters of several tokens come out right only so.
    Where a model writes bytes that are no characters, a tokenizer of Llama's kind takes back whole characters before
    them; what was returned stays.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: np.ndarray) -> None:
        self._tokenizer, self._prompt = tokenizer, prompt
        self._ids: list[int] = []
        self._n_shown = 0

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token, beyond what was returned before; often empty."""
        self._ids.append(token_id)
        return self._new(self._text().rstrip(_UNFINISHED))

    def finish(self) -> str:
        """What was held back."""
        return self._new(self._text())

    def _text(self) -> str:
        return continuation(self._tokenizer, self._prompt, np.array(self._ids, np.int32))

    def _new(self, text: str) -> str:
        new = text[self._n_shown :]
        self._n_shown += len(new)
        return new
