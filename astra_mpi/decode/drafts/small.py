"""Drafts by a small model with the same tokens, alone on the rank that samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.decode.drafts import N_GRADES, Guess
from astra_mpi.decode.sampling import Sample
from astra_mpi.decode.steps import Local
from astra_mpi.device.xp import module_of, take
from astra_mpi.kernels.cpu.token.tables import MAX_ROWS
from astra_mpi.strategies.token_parallel import TokenParallel

if TYPE_CHECKING:
    from astra_mpi.decode.prefill import Engine


class Sequence:
    """What the small model knows of one."""

    def __init__(self, room: int) -> None:
        self.room = room  # tokens whose keys it may keep
        self.n_fed = 0  # new tokens whose keys it keeps, guesses among them
        self.waiting: list[int] = []  # tokens that it has not read
        self.guess = Guess([], [])  # of what comes next, all but the last read


class SmallGuesses:
    """A guess's grade is the probability that the small model gives it, in steps."""

    expected = tuple((i + 0.5) / N_GRADES for i in range(N_GRADES))

    def __init__(self, model: Engine, sample: Sample, prompts: dict[int, np.ndarray], room: np.ndarray, n: int) -> None:
        """n: tokens that the large model chooses from."""
        self.sample, self.n_tokens = sample, n
        fitting = [s for s, ids in prompts.items() if len(ids) <= model.config.max_positions]
        self.numbers = {s: i for i, s in enumerate(fitting)}  # in the small model's batch; of others nothing is guessed
        self.known: list[Sequence] = []
        if fitting:
            self._read(model, [prompts[s] for s in fitting], room[fitting])

    def _read(self, model: Engine, prompts: list[np.ndarray], room: np.ndarray) -> None:
        """Prompts, each with room (B,) for new tokens."""
        strategy = model.strategy
        assert isinstance(strategy, TokenParallel)
        lengths = np.array([len(ids) for ids in prompts])
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate(prompts)
        batch = model.prepare(ids, mask)
        layout = model.layout(batch.lengths, spread=True)
        room = np.minimum(room, model.config.last_position(lengths, model.config.max_positions) - lengths)
        self.known = [Sequence(int(n) - 1) for n in room]
        self.mode = Local(model, layout, np.maximum(room, 1), lengths)
        strategy.cache, strategy.keeps_codes = self.mode.cache, False
        try:
            model.run(batch, layout, self.mode.prefilled, 0)
        finally:
            strategy.cache = None

    def learn(self, sequence: int, ids: list[int]) -> list[tuple[int, bool]]:
        number = self.numbers.get(sequence)
        if number is None:
            return []
        known, decided, right = self.known[number], [], 0
        for token, guess, grade in zip(ids, *known.guess, strict=False):
            decided.append((grade, token == guess))
            if token != guess:
                break
            right += 1
        n_read = max(len(known.guess.ids) - 1, 0)
        kept = min(right, n_read, len(ids) - 1)  # the last one's row says what comes next
        self.mode.drop(number, known.n_fed - n_read + kept, known.n_fed)
        known.n_fed -= n_read - kept
        known.waiting += ids[kept:]
        known.guess = Guess([], [])
        return decided

    def guess(self, sequences: list[int], most: list[int]) -> list[Guess]:
        wanted = {}
        for s, n in zip(sequences, most, strict=True):
            if s not in self.numbers:
                continue
            known = self.known[self.numbers[s]]
            n = min(n, known.room - known.n_fed - len(known.waiting) + 1)
            if n > 0:
                wanted[s] = n
        while wanted:
            ids = self._next(list(wanted))
            for s, (token, grade) in zip(list(wanted), ids, strict=True):
                known = self.known[self.numbers[s]]
                known.guess.ids.append(token)
                known.guess.grades.append(grade)
                if len(known.guess.ids) == wanted[s]:
                    del wanted[s]
                else:
                    known.waiting.append(token)
        return [self.known[self.numbers[s]].guess if s in self.numbers else Guess([], []) for s in sequences]

    def _next(self, sequences: list[int]) -> list[tuple[int, int]]:
        """The next token of each, and its grade, after all that waits was read."""
        last: dict[int, Any] = {}
        while any(self.known[self.numbers[s]].waiting for s in sequences):
            last |= self._fed(sequences)
        rows = module_of(last[sequences[0]]).concatenate([last[s] for s in sequences])
        logits = self.mode.logits(rows)[:, : self.n_tokens]
        found = []
        for s, row in zip(sequences, logits, strict=True):
            step = self.known[self.numbers[s]].n_fed
            token = int(self.sample(row[None], np.array([s]), step)[0])
            share = np.exp(row[token] - row.max()) / np.exp(row - row.max()).sum()
            found.append((token, min(int(share * N_GRADES), N_GRADES - 1)))
        return found

    def _fed(self, sequences: list[int]) -> dict[int, Any]:
        """Some of what waits, as much as a call takes -> rows (1, D) after the last token of those with none left."""
        ids: list[int] = []
        numbers: list[int] = []
        steps: list[int] = []
        ends: dict[int, int] = {}
        for s in sequences:
            i = self.numbers[s]
            known = self.known[i]
            now, known.waiting = known.waiting[: MAX_ROWS - len(ids)], known.waiting[MAX_ROWS - len(ids) :]
            ids += now
            numbers += [i] * len(now)
            steps += range(known.n_fed, known.n_fed + len(now))
            known.n_fed += len(now)
            if now and not known.waiting:
                ends[s] = len(ids) - 1
        self.mode.announce(len(ids))
        rows = self.mode.step(np.array(ids, np.int64), np.array(numbers), np.array(steps))
        return {s: take(rows, np.array([end])) for s, end in ends.items()}


class Small:
    """A model on one rank."""

    free = False

    def __init__(self, model: Engine, n_tokens: int) -> None:
        """n_tokens: that the large model chooses from."""
        self.model, self.n_tokens = model, n_tokens
        self.name = f"model {model.digest[:12]}"

    def open(self, sample: Sample, prompts: dict[int, np.ndarray], room: np.ndarray) -> SmallGuesses:
        return SmallGuesses(self.model, sample, prompts, room, self.n_tokens)
