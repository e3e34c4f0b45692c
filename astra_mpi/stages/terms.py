"""What the oracle is told of a pass over stages: the terms of all stages as those of one model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from astra_mpi.ranks.post import Letter, Post
from astra_mpi.ranks.watched import waiting

#: lists with one array for each block that exchanges
_BY_BLOCK = ("codes", "seen", "missing", "stand_in")
_NAP_S = 1e-4


def terms_of_all(pipeline: Any, terms: dict[str, Any]) -> dict[str, Any]:
    """Collective: the `oracle_terms` of each stage -> those of the whole model, on the first rank."""
    post = Post(pipeline.comm)
    maps = "codec" in terms and pipeline.codec.config.has_maps
    if maps and pipeline.stage:  # its first block sends nothing, which is a block among others of the whole model
        layout = pipeline.model.strategy.planned
        terms = terms | {"codes": [np.zeros((int(layout.token_counts.sum()), 1), np.uint8), *terms["codes"]]}
    if pipeline.token == 0 and pipeline.stage:
        post.send(0, {}, _arrays(terms))
    if pipeline.comm.Get_rank() == 0:
        terms = _joined(pipeline, terms, post)
    with waiting(pipeline.comm, "terms of stages"):
        post.flush()
    post.close()
    return terms


def _arrays(terms: Mapping[str, Any]) -> dict[str, np.ndarray]:
    lists = {name: terms[name] for name in _BY_BLOCK if terms.get(name) is not None}
    return {f"{name} {i}": np.asarray(array) for name, arrays in lists.items() for i, array in enumerate(arrays)}


def _joined(pipeline: Any, terms: dict[str, Any], post: Post) -> dict[str, Any]:
    letters: list[Letter] = []
    with waiting(pipeline.comm, "terms of stages"):
        while len(letters) < pipeline.n_stages - 1:
            letters += post.letters()
            time.sleep(_NAP_S)
    joined = dict(terms)
    for name in _BY_BLOCK:
        if terms.get(name) is None:
            continue
        arrays = list(terms[name])
        for letter in sorted(letters, key=lambda letter: letter.source):
            arrays += [array for key, array in letter.arrays.items() if key.split()[0] == name]
        joined[name] = arrays
    begins = {"begins": [part.first for part in pipeline.parts]} if "codec" in terms else {}
    return joined | ({"codec": pipeline.codec} | begins if "codec" in terms else {})
