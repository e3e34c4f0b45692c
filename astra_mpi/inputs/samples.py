"""Texts of several kinds, on which a model shows how it computes where a user has given none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from astra_mpi.errors import InputError
from astra_mpi.inputs.sources import padded
from astra_mpi.inputs.text import tokenizer_of

if TYPE_CHECKING:
    from astra_mpi.engine import Model

TEXTS = (
    "The harbour lies on the north side of the island, behind a wall of grey stone. In winter the ferry comes twice a"
    " week, if the wind allows it. People wait in a small room with a stove and talk about the price of fish. When the"
    " boat is late, somebody makes tea, and the children look for crabs between the stones.",
    "To solve a system of linear equations, bring the matrix into triangular form, row by row. In each step, choose the"
    " row whose leading number is largest, because dividing by a small number makes rounding errors grow. Then start"
    " from the last equation, which has one unknown only, and put each result into the equations above it.",
    "A cell takes sugar from the blood and turns it into energy. If there is too much sugar, the liver stores the rest;"
    " between meals it gives some of it back. Insulin controls both. In a patient who makes no insulin the level rises"
    " within hours, so it must be measured several times a day, and the dose follows what was eaten.",
    "The court held that the contract was void, since one of the parties had not been told of the defect before she"
    " signed. The seller argued that anybody could have seen it. The judge did not agree: a crack behind a cupboard is"
    " not something that a buyer has to look for. The price was paid back in March 1998, with interest of 4 percent.",
    "First melt the butter in a wide pan. Add two onions, cut into thin rings, and let them become soft, but not brown."
    " Stir in a spoon of flour, then half a litre of stock, a little at a time. After twenty minutes, season with salt,"
    " pepper and a bay leaf. Serve the soup hot, with bread and grated cheese on top.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n    total = 0.0\n"
    "    for value in values:\n        total += value\n    return total / len(values)\n\nprint(mean([3, 5]))  # 4.0\n",
    "Did you see the match last night? I could not believe it. They were two goals behind with ten minutes to go, and"
    " then the new one, the tall one from Ghana, scored twice. My brother called me at once. We have tickets for the"
    " next game, on Saturday at three, so tell me whether you want to come along.",
    "The first railway between the two cities was opened in 1848. It took passengers along the river in five hours; by"
    " coach the journey had needed two days. Within twenty years the population of both cities had doubled. Factories"
    " were built near the stations, and the old market in the centre lost most of its trade.",
)

#: tokens that are taken of each
_TOKENS = 96


def sample_texts(model: Model) -> tuple[str, np.ndarray, np.ndarray] | None:
    """What they are in words, ids and mask (B, T), as the model's own tokenizer reads them; None where it has none, or
    without the library that reads it."""
    if not model.tokenizer:
        return None
    try:
        tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, preprocess=model.preprocess, prompt=None)
        rows = tokenizer.encode(TEXTS, min(_TOKENS, model.config.max_positions))
    except InputError:
        return None
    return "sample texts", *padded(rows)
