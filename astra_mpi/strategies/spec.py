"""A strategy and its options in one word: name[:option[:option]], such as sp, sp:kv:int8 or segment_means:8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product

from astra_mpi.config import require

Value = str | int


@dataclass(frozen=True)
class Option:
    """One option of a strategy: one of `words`, or a positive integer where there are none."""

    key: str  # its name in decks and among the choices of a report
    default: Value
    words: tuple[str, ...] = ()
    always: bool = False  # written out at its default, too
    special: bool = False  # for some models only: no form of its own, unless it is asked for

    def accepts(self, value: Value) -> bool:
        return value in self.words if self.words else isinstance(value, int) and value >= 1

    def __str__(self) -> str:
        return "|".join(self.words) or self.key.upper()


@dataclass(frozen=True)
class Spec:
    """A strategy with all its options, defaults filled in. `str` writes it as it is given, defaults left out."""

    name: str
    known: tuple[Option, ...] = ()
    values: Mapping[str, Value] = field(default_factory=dict)

    def word(self, key: str) -> str:
        return str(self.values[key])

    def number(self, key: str) -> int:
        return int(self.values[key])

    def __str__(self) -> str:
        told = [o for o in self.known if o.always or self.values[o.key] != o.default]
        return ":".join([self.name, *(str(self.values[o.key]) for o in told)])


Known = Mapping[str, tuple[Option, ...]]


def parse_spec(text: str, known: Known, keys: Mapping[str, Value | None]) -> Spec:
    """`text` as a spec of one of the `known` strategies and their options.

    keys: option -> value given beside the text, None = not given; those that this strategy does not have are left
    aside. InputError says what is possible, or that an option is given twice.
    """
    name, *words = text.split(":")
    require(name in known, f"strategy '{name}' is unknown; use one of {possible(known)}")
    options = {option.key: option for option in known[name]}
    values: dict[str, Value] = {}
    for word in words:
        value: Value = int(word) if word.isdecimal() else word
        key = next((key for key, option in options.items() if key not in values and option.accepts(value)), None)
        if key is None:
            require(False, f"strategy '{text}': '{word}' does not fit; use one of {possible(known)}")
        else:
            values[key] = value
    for key, given in keys.items():
        if given is not None and key in options:
            require(options[key].accepts(given), f"{key} = '{given}' is unknown; use {_in_words(options[key])}")
            require(
                values.setdefault(key, given) == given,
                f"strategy '{text}' and {key} = '{given}' contradict each other; give one of them",
            )
    return Spec(name, known[name], {key: values.get(key, option.default) for key, option in options.items()})


def possible(known: Known) -> str:
    """What can be written: single, sp[:x|kv][:float32|float16|int8], .."""
    return ", ".join(name + "".join(f"[:{option}]" for option in options) for name, options in known.items())


def forms(name: str, known: Known) -> list[str]:
    """One spec for every combination of the words of a strategy's options, integers at their defaults."""
    options = known[name]
    values = [(option.default,) if option.special or not option.words else option.words for option in options]
    keys = [option.key for option in options]
    return [str(Spec(name, options, dict(zip(keys, choice, strict=True)))) for choice in product(*values)]


def _in_words(option: Option) -> str:
    return " or ".join(option.words) or "a positive integer"
