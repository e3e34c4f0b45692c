"""What is asked of every input kind."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from astra_mpi.errors import InputError
from astra_mpi.inputs.sources import Source

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class Taker(NamedTuple):
    """The model that takes the items, as its file says it, and what for."""

    config: Any
    tokenizer: str | None
    preprocess: dict[str, Any] | None
    prompts: bool = False  # texts are to be gone on with
    prompt: str | bool | None = None  # is put before texts: None, the default one
    pairs: bool = False  # an item may be two texts
    ranked: bool = False  # every item is two texts, and the source has their `queries`

    def max_tokens(self, section: InputSection) -> int:
        """The deck's, else what the model is meant for, else all its positions; of prompts one more, to find long ones.

        InputError on more than the model has.
        """
        limit: int = self.config.max_positions
        wanted = section.max_tokens
        if wanted is None:
            if self.prompts:
                return limit + 1
            return min(limit, (self.preprocess or {}).get("max_tokens", limit))
        if wanted > limit:
            raise InputError(f"input.max_tokens = {wanted} is more than this model's {limit} positions; lower it")
        return wanted


class InputKind:
    """Files of some suffixes, or folders, that hold items of one sort."""

    #: `input.kind`
    kind: ClassVar[str]
    #: of the files that are read; (): of folders
    suffixes: ClassVar[tuple[str, ...]] = ()
    #: whether items are texts, which the model's tokenizer turns into tokens, and before which a prompt may stand
    tokenizes: ClassVar[bool] = False
    #: whether `input.mask` may leave tokens out
    masks: ClassVar[bool] = False
    #: whether a file may also be read as one text, line breaks included
    running_text: ClassVar[bool] = False
    #: whether `input.labels` may name classes
    labels: ClassVar[bool] = True

    @classmethod
    def reads(cls, path: Path) -> bool:
        """Whether this is such a file; those of images or folders may look at the disk."""
        return path.suffix in cls.suffixes and not path.is_dir()

    @classmethod
    def fits(cls, config: Any) -> bool:
        """Whether a model of this config takes such items."""
        raise NotImplementedError

    @classmethod
    def open(cls, section: InputSection, model: Taker) -> Source:
        """The items of [input]. InputError, naming file and cure, on what cannot be read or the model cannot take."""
        raise NotImplementedError


def takes_images(config: Any) -> bool:
    """Whether a model sees images, not tokens."""
    return hasattr(config, "image_size")
