"""astra-mpi chat: a conversation with a model, on the terminal or through pipes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from astra_mpi.commands.generate import (
    add_chat_options,
    add_draft_options,
    add_far_option,
    add_sampling_options,
    open_dialogue,
)
from astra_mpi.commands.model_options import add_loading_options, write_json

if TYPE_CHECKING:
    from mpi4py import MPI

    from astra_mpi.job.chat import Answer, Dialogue
    from astra_mpi.ranks.keyboard import Keyboard
    from astra_mpi.ranks.signals import Interrupts

#: bytes of the longest message
LONGEST_LINE = 16 << 20
HELP = "A line is a message. /new forgets what was said, /exit or the end of the input ends. Ctrl-C ends an answer."


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "chat",
        help="talk to a model",
        description="Answers the lines of standard input, as the model's own chat template puts them. Start with mpirun"
        f" or srun, or on one rank. {HELP} Answers go to stdout, times and bytes to stderr.",
    )
    parser.add_argument("model", help="model file of a decoder with a tokenizer and a chat template")
    add_chat_options(parser)
    add_sampling_options(parser, n_tokens=512)
    parser.add_argument(
        "--strategy",
        default="auto",
        metavar="A",
        help="auto (default): astra with codebooks, else the exact one for this link (docs/explanation/planner.md)",
    )
    parser.add_argument("--decode", default="auto", help="local or auto (default): the rank that knows all; or merged,"
                        " which reads the whole conversation again for every answer")  # fmt: skip
    add_far_option(parser)
    add_draft_options(parser)
    add_loading_options(parser, "of drawn tokens and of what is lost")
    parser.set_defaults(run=run, spmd=True, strategies=None)


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    from astra_mpi.errors import collective
    from astra_mpi.ranks.keyboard import Keyboard
    from astra_mpi.ranks.signals import Interrupts

    dialogue = open_dialogue(args, comm)
    with Interrupts() as interrupts, Keyboard(sys.stdin if dialogue.root else None, interrupts) as keyboard:
        answers = _talk(dialogue, interrupts, keyboard)
    with collective(comm):
        if dialogue.root and args.json:
            write_json(args.json, [{"text": a.text, "tokens": a.tokens, **a.figures()} for a in answers])
    return 0


def _talk(dialogue: Dialogue, interrupts: Interrupts, keyboard: Keyboard) -> list[Answer]:
    """Collective: message after message until the end of the input."""
    from astra_mpi.errors import InputError, collective
    from astra_mpi.job.chat import in_words
    from astra_mpi.ranks.broadcast import broadcast_line

    answers: list[Answer] = []
    if dialogue.root:
        chosen = dialogue.model.chosen_compute
        _note("\n".join([HELP, *([chosen["why"]] if chosen else [])]))
    comm = dialogue.model.comm
    while (line := broadcast_line(comm, _line(interrupts, keyboard) if dialogue.root else None)) is not None:
        interrupts.take()
        if line == "/new":
            dialogue.restart()
            continue
        try:
            answer = dialogue.say(line, interrupts)
        except InputError as exc:  # the same on all ranks: the message was not said
            if dialogue.root:
                _note(str(exc))
            continue
        answers.append(answer)
        interrupts.take()
        if dialogue.root:
            _note(in_words(answer.figures()))
        with collective(comm):
            dialogue.conversation.rest()
    return answers


def _line(interrupts: Interrupts, keyboard: Keyboard) -> str | None:
    """The next message, on rank 0; None at the end."""
    while True:
        if sys.stdin is not None and sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        raw = keyboard.line(LONGEST_LINE)
        if interrupts.take():
            _note("/exit or the end of the input ends the conversation")
        if raw is None or raw.strip() == b"/exit":
            return None
        if len(raw) > LONGEST_LINE:
            _note(f"a message has at most {LONGEST_LINE >> 20} MiB; say it in less")
            continue
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError as exc:
            _note(f"the message is not UTF-8 at byte {exc.start}; type it again")
            continue
        if text == "/help":
            _note(HELP)
        elif text:
            return text


def _note(text: str) -> None:
    """A line on stderr, dim where that is a terminal."""
    dim, plain = ("\033[2m", "\033[0m") if sys.stderr.isatty() else ("", "")
    print(f"{dim}{text}{plain}", file=sys.stderr, flush=True)
