"""What a stage has of a model: some blocks, with their codebooks, as a model of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import no_codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import ModelConfig
from astra_mpi.files.modelfile import ModelFile


@dataclass(frozen=True)
class Part:
    """The blocks `first` .. `end` - 1, and what lies outside of the blocks that this stage needs."""

    first: int
    end: int
    embeds: bool  # the first stage
    has_head: bool

    def holds(self, tied: bool) -> Callable[[str], bool]:
        """Which weights, by name. tied: the head is the word embedding."""

        def held(name: str) -> bool:
            if name.startswith("blocks."):
                return self.first <= int(name.split(".")[1]) < self.end
            if name.startswith("embed."):
                relative = name.startswith("embed.relative")  # of every block's attention
                return self.embeds or relative or (self.has_head and tied and name == "embed.word")
            return self.has_head or name.startswith("norm.")  # vectors, of which embeddings take the type

        return held

    def of_config(self, config: Any) -> Any:
        """The config of a model of these blocks."""
        changes: dict[str, Any] = {"n_layers": self.end - self.first}
        if config.windows:
            changes["windows"] = config.windows[self.first : self.end]
        if getattr(config, "unturned", ()):
            changes["unturned"] = tuple(i - self.first for i in config.unturned if self.first <= i < self.end)
        return replace(config, **changes)

    def of_codec(self, codec: Codec | None) -> Codec | None:
        """The codebooks of these blocks."""
        if codec is None:
            return None
        config, rule = codec.config, codec.config.rule
        if config.by_block:
            counts: dict[str, Any] = {rule.count: getattr(config, rule.count)[self.first : self.end]}
            config = replace(config, **counts)
        config = replace(config, awaited=tuple(i - self.first for i in config.awaited if self.first < i < self.end))
        blocks = codec.blocks[self.first : self.end]
        if config.has_maps:  # a stage begins with the rows of all tokens
            blocks = (BlockCodec((no_codebook(config, blocks[0].width),)), *blocks[1:])
        return Codec(_plain(config), blocks)

    def of_file(self, file: ModelFile) -> ModelFile:
        """These blocks, numbered from 0."""
        held = self.holds(is_tied(file.config))
        weights = {self._renamed(name): weight for name, weight in file.weights.items() if held(name)}
        return replace(file, config=self.of_config(file.config), codec=self.of_codec(file.codec), weights=weights)

    def _renamed(self, name: str) -> str:
        if not name.startswith("blocks."):
            return name
        _, i, inside = name.split(".", 2)
        return f"blocks.{int(i) - self.first}.{inside}"


def _plain(config: CodecConfig) -> CodecConfig:
    """Without what the codebooks themselves say."""
    return replace(config, encoder="auto")


def is_tied(config: ModelConfig) -> bool:
    """Whether the head is the word embedding."""
    return bool(getattr(config, "tied", False))


def parts_of(counts: list[int], head: int) -> list[Part]:
    """Of stages with so many blocks each; head: the stage that has the head."""
    parts, first = [], 0
    for s, n in enumerate(counts):
        parts.append(Part(first, first + n, s == 0, s == head))
        first += n
    return parts
