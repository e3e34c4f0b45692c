"""Token ids, (items, tokens), with a mask or lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_mpi.config import require
from astra_mpi.files.checksum import file_digest
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.inputs.kinds.arrays import ArrayKind
from astra_mpi.inputs.kinds.kind import Taker, takes_images
from astra_mpi.inputs.sources import ArraySource, Source

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class TokenArrays(ArrayKind):
    """Integers, taken as they are."""

    kind = "tokens"
    masks = True

    @classmethod
    def fits(cls, config: Any) -> bool:
        return not takes_images(config)

    @classmethod
    def open(cls, section: InputSection, model: Taker) -> Source:
        path, max_tokens = section.path, model.max_tokens(section)
        file = ArrayFile(path)
        ids = file.get(cls.dataset(section))
        require(
            len(ids.shape) == 2 and ids.dtype.kind in "iu",
            f"{path}: token ids are {ids.dtype} of shape {ids.shape}; give integers (items, tokens)",
        )
        n_items, n_tokens = ids.shape
        mask = None
        if section.mask is not None:
            mask = file.get(section.mask)
            require(
                mask.shape in ((n_items, n_tokens), (n_items,)),
                f"{path}: '{section.mask}' has shape {mask.shape}; give ({n_items}, {n_tokens}), 0 = leave the token "
                f"out, or ({n_items},) lengths",
            )
        cut = min(n_tokens, max_tokens)
        source = ArraySource(ids, mask, cut, cls.classes(file, section, n_items), file_digest(path))
        source.check(path, model.config.vocab_size)
        return source
