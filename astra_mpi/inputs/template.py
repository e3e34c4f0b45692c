"""A chat template rendered as `transformers` does it, in Jinja's sandbox, within limits of steps and memory.

A template is code from wherever the checkpoint came from. The sandbox keeps it away from Python; here it is also kept
from running for ever and from filling the memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from types import FrameType
from typing import Any

from astra_mpi.errors import InputError

#: lines of Python that a rendering may take: a message takes about 50, so these are for conversations of ten thousands
MAX_STEPS = 2_000_000
#: bytes that a rendering may add to the process
MAX_BYTES = 256 << 20
#: characters of a template; the longest known ones have 20,000
MAX_LENGTH = 48_000
#: bits of a power that a template may compute
_MAX_BITS = 4096


class _TooLongError(Exception):
    """The rendering took MAX_STEPS."""


def render(source: str, values: Mapping[str, Any]) -> str:
    """The template with these values. InputError, in one sentence, where it cannot be read, fails, or does not end."""
    with _refusing():
        template = _compiled(source)
        with _bounded_memory(), _bounded_steps():
            text: str = template.render(**values)
        return text


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        import jinja2
    except ImportError as exc:
        raise InputError("a chat template needs the jinja2 library; pip install 'astra-mpi[text]'") from exc
    again = "correct it and convert again"
    try:
        yield
    except jinja2.TemplateSyntaxError as exc:
        where = f"line {exc.lineno} ({exc.message})"
        raise InputError(f"the model's chat template is no Jinja at {where}; {again}") from exc
    except jinja2.exceptions.SecurityError as exc:
        raise InputError(
            f"the model's chat template reaches for what a template may not have ({exc}); take a checkpoint that you"
            " trust"
        ) from exc
    except jinja2.TemplateError as exc:
        raise InputError(f"the model's chat template refuses this conversation ({exc}); change the messages") from exc
    except _TooLongError as exc:
        raise InputError(f"the model's chat template does not end within {MAX_STEPS} steps; {again}") from exc
    except MemoryError as exc:
        raise InputError(f"the model's chat template takes more than {MAX_BYTES >> 20} MiB; {again}") from exc
    except InputError:
        raise
    except Exception as exc:
        raise InputError(f"the model's chat template fails ({type(exc).__name__}: {exc}); {again}") from exc


@cache
def _compiled(source: str) -> Any:
    if len(source) > MAX_LENGTH:
        raise InputError(f"the model's chat template has {len(source)} characters; at most {MAX_LENGTH} are read")
    with _bounded_memory():
        return _environment().from_string(source)


@cache
def _environment() -> Any:
    """As of `transformers.utils.chat_template_utils`, and with powers and templates by name refused."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what a model is trained on; its contents are rendered as they are."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja's own extensions have it

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"**"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if isinstance(left, int) and isinstance(right, int) and abs(left).bit_length() * abs(right) > _MAX_BITS:
                raise jinja2.exceptions.SecurityError(f"a power of more than {_MAX_BITS} bits")
            return super().call_binop(context, operator, left, right)

    class Names(jinja2.utils.Namespace):
        """A namespace without names that begin with an underscore."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, args = args[0], args[1:]
            values = dict(*args, **kwargs)
            for name in values:
                _check_name(name)
            jinja2.utils.Namespace.__init__(self, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_name(name)
            super().__setitem__(name, value)

    def _check_name(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"the name {name!r} in a namespace")

    class Dict:
        """`dict` without the attributes of the class."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def other(name: str) -> str:
        raise jinja2.exceptions.SecurityError(f"another template, {name!r}")

    loader = jinja2.FunctionLoader(other)
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], loader=loader
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": _now,
        "dict": Dict(),
        "namespace": Names,
    }
    return environment


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own escapes what HTML does not take."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


@contextmanager
def _bounded_steps() -> Iterator[None]:
    """_TooLongError once the body has run MAX_STEPS lines of Python."""
    left = MAX_STEPS

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                raise _TooLongError
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """MemoryError once the process has grown by MAX_BYTES, where the system can say and limit it."""
    limits = None
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        wanted = now + MAX_BYTES
        if before[0] == resource.RLIM_INFINITY or before[0] > wanted:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, before[1]))
            limits = before
    try:
        yield
    finally:
        if limits is not None:
            resource.setrlimit(resource.RLIMIT_AS, limits)
