"""Random token ids and texts that both sides get."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "MiXeD CaSe and UPPER CASE, with 1234567890 and 3.14159!",
    "Crème brûlée, naïve façade, Zürich, Łódź, smörgåsbord, Ångström",
    "e\u0301 and \u00e9 are one letter; \ufb01 is a ligature, \u2460 a number, \uff21\uff22 wide letters",
    "中文字符和日本語のテキスト、한국어도 있다。",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "emoji 🙂 👩‍👩‍👧 🇨🇭 and a flag",
    "  leading,   inner    and trailing spaces  ",
    "tabs\tand\nnew\n\nlines\r\nof several kinds\u00a0\u2003",
    "soft\u00adhyphen, zero\u200bwidth, \ufeffmark, right-to-left \u200f",
    "don't can't it's we'll I'm they've 'quoted' \"double\" “curly” — dash … dots",
    "[CLS] [SEP] [MASK] [PAD] <s> </s> <unk> <|endoftext|> <pad>",
    "https://example.org/a?b=c&d=e#f name@example.org C:\\dir\\file.txt",
    "def f(x):\n    return x ** 2  # comment\n",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaftskapitän",
    "a",
    "ß İ ı ǅ ς",
    "word " * 600,
    "x" * 300,
    "字" * 700,
)


class Tokens(NamedTuple):
    """Sequences of random tokens, some with gaps between their positions."""

    ids: np.ndarray  # (B, max_positions) int64, for our side: a token stands at its position
    mask: np.ndarray  # (B, max_positions) bool: where there is one
    lengths: np.ndarray  # (B,)

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> ids, positions, mask (B, T): the tokens side by side, as transformers takes them."""
        keep = np.arange(self.lengths.max()) < self.lengths[:, None]
        ids, positions = np.zeros(keep.shape, np.int64), np.zeros(keep.shape, np.int64)
        ids[keep], positions[keep] = self.ids[self.mask], np.nonzero(self.mask)[1]
        return ids, positions, keep


def random_tokens(config: Any, longest: int = 96, seed: int = 0) -> Tokens:
    """Ragged sequences from position 0 on, and one whose positions are spread up to the model's last."""
    rng = np.random.default_rng(seed)
    n = min(longest, config.max_positions)
    lengths = np.array([n, max(1, 2 * n // 3), min(5, n), 1, n])
    mask = np.arange(config.max_positions) < lengths[:, None]
    spread = rng.permutation(config.max_positions)[:n]
    spread[np.argmin(spread)], spread[np.argmax(spread)] = 0, config.max_positions - 1
    mask[-1] = False
    mask[-1, spread] = True
    lengths[-1] = mask[-1].sum()
    ids = rng.integers(0, config.vocab_size, mask.shape)
    ids[0, 0], ids[-1, -1] = config.vocab_size - 1, 0
    return Tokens(ids, mask, lengths)
