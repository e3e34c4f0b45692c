"""astra-mpi generate: go on with one prompt, on the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.commands.model_options import add_loading_options, load_model, write_json

if TYPE_CHECKING:
    import numpy as np
    from mpi4py import MPI

    from astra_mpi.decks.deck import TaskSection
    from astra_mpi.engine import Model
    from astra_mpi.inputs.text import Tokenizer
    from astra_mpi.job.chat import Dialogue


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "generate",
        help="go on with a prompt, printed as it comes",
        description="Prints a prompt and what the model makes of it, token by token, on stdout; times and bytes on"
        " stderr. Start with mpirun or srun, or on one rank. For files of prompts: `run` with task.name = generate.",
    )
    parser.add_argument("model", help="model file of a decoder (GPT-2, Llama), with a tokenizer")
    parser.add_argument("prompt", nargs="?", help="text to go on from")
    parser.add_argument("--prompt-file", metavar="FILE", help="a text file, whole, instead")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message; only the answer is printed")
    add_chat_options(parser)
    add_sampling_options(parser)
    parser.add_argument(
        "--strategy",
        default="auto",
        metavar="A",
        help="auto (default): astra with codebooks, else the exact one for this link (docs/explanation/planner.md)",
    )
    parser.add_argument("--decode", default="auto", help="local, merged or auto (default; docs/reference/generate.md)")
    add_far_option(parser)
    add_draft_options(parser)
    add_loading_options(parser, "of drawn tokens and of what is lost")
    parser.set_defaults(run=run, spmd=True, strategies=None)


def add_far_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--far", default="keys", metavar="F", help="how far tokens that came as codes are kept: keys"
                        " (default; keys and values, fast) or codes (small)")  # fmt: skip


def add_draft_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--draft",
        metavar="D",
        help="what guesses next tokens, of which one pass checks several: lookup (what came after the same tokens"
        " before), or the file of a small model with the same tokenizer (docs/explanation/drafts.md)",
    )
    parser.add_argument(
        "--draft-tokens", type=int, metavar="K", help="guesses that one pass checks, at most (default 15; fewer if they"
        " do not pay)",
    )  # fmt: skip


def add_chat_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("chat")
    group.add_argument("--system", metavar="TEXT", help="what the model is told before the first message")
    group.add_argument("--template", metavar="NAME", help="which of the model's chat templates (default: default)")


def add_sampling_options(parser: argparse.ArgumentParser, n_tokens: int = 100) -> None:
    group = parser.add_argument_group("what is generated")
    group.add_argument("--max-new-tokens", type=int, default=n_tokens, metavar="N", help="default %(default)s")
    group.add_argument("--temperature", type=float, metavar="T", help="0: the most likely token (default 0, or 1 beside"
                       " --top-k and --top-p)")  # fmt: skip
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="and from those of together this probability")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="what ends the text; again for further ones"
    )
    group.add_argument("--ignore-end", action="store_true", help="go on after the model's own end tokens")


def run(args: argparse.Namespace, comm: MPI.Comm) -> int:
    import numpy as np

    from astra_mpi.config import require
    from astra_mpi.errors import collective
    from astra_mpi.inputs.text import tokenizer_of
    from astra_mpi.job.continuation import continuation
    from astra_mpi.job.generation import Generator, Printer
    from astra_mpi.planner.auto import Workload, decide, hint, reason
    from astra_mpi.ranks.broadcast import broadcast_text
    from astra_mpi.strategies import AUTO, coded_form, parse_request

    text = ""
    with collective(comm):
        task, request = task_of(args), parse_request(args.strategy)
        require(args.chat or not (args.system or args.template), "--system and --template are for --chat; give it too")
        if comm.Get_rank() == 0:
            text = _prompt(args)
    text = broadcast_text(comm, text)
    if args.chat:
        return _answer(args, comm, text)
    model = load_model(args, comm, None if request.name == AUTO else args.strategy, one_replica=True)
    with collective(comm):
        check_family(args.model, model)
        generator = Generator(task, model, args.seed)
        tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size, open_ended=True, preprocess=model.preprocess)
        ids = _prompt_ids(text, tokenizer, model.config.max_positions)
    if request.name == AUTO:
        workload = Workload(len(ids), new_tokens=args.max_new_tokens, decode=args.decode)
        coded = coded_form(request) if comm.Get_size() > 1 else "single"  # which needs no tables
        decide(model, workload, coded, counted_keys=args.counted_keys == "on")
    with collective(comm):
        printer = Printer(tokenizer, ids, sys.stdout) if comm.Get_rank() == 0 else None
    new = generator(ids[None], np.ones((1, len(ids)), bool), [0], printer)[0]
    with collective(comm):
        if printer is not None:
            printer.close()
            said = [_costs(model.report), reason(model.chosen), hint(model.chosen, "--strategy ")]
            said.append((model.chosen_compute or {}).get("why", ""))
            print("\n".join(filter(None, said)), file=sys.stderr, flush=True)
            if args.json:
                told = {"prompt": text, "text": continuation(tokenizer, ids, new[new >= 0])}
                write_json(args.json, told | {"tokens": new[new >= 0].tolist(), "report": model.report})
    return 0


def open_dialogue(args: argparse.Namespace, comm: MPI.Comm) -> Dialogue:
    """Collective: the model as the options say, to be talked to."""
    from astra_mpi.errors import collective
    from astra_mpi.job.chat import ChatPrompts, Dialogue
    from astra_mpi.job.generation import Generator

    with collective(comm):
        task = task_of(args)
    model = load_model(args, comm, args.strategy, args.max_new_tokens, one_replica=True)
    with collective(comm):
        check_family(args.model, model)
        dialogue = Dialogue(
            model, Generator(task, model, args.seed), ChatPrompts(model, args.template), args.system or ""
        )
        if dialogue.root:
            dialogue.check()
    return dialogue


def _answer(args: argparse.Namespace, comm: MPI.Comm, text: str) -> int:
    """One message, one answer."""
    from astra_mpi.errors import collective
    from astra_mpi.planner.auto import reason

    dialogue = open_dialogue(args, comm)
    dialogue.restart(goes_on=False)
    answer = dialogue.say(text)
    with collective(comm):
        if dialogue.root:
            chosen = dialogue.model.chosen_compute or {}
            said = [_costs(answer.report), reason(dialogue.model.chosen), chosen.get("why", "")]
            print("\n".join(filter(None, said)), file=sys.stderr, flush=True)
            if args.json:
                told = {"prompt": text, "text": answer.text, "tokens": answer.tokens, "report": answer.report}
                write_json(args.json, told)
    return 0


def task_of(args: argparse.Namespace) -> TaskSection:
    """The options as the [task] of a deck. InputError on values out of range."""
    from typing import get_args, get_type_hints

    from astra_mpi.config import require
    from astra_mpi.decks.deck import TaskSection

    for name in ("decode", "far"):
        value, known = getattr(args, name), get_args(get_type_hints(TaskSection)[name])
        require(value in known, f"--{name} {value} is unknown; use one of {', '.join(known)}")
    require(args.max_new_tokens >= 1, f"--max-new-tokens {args.max_new_tokens}: at least 1")
    drawn = args.top_k is not None or args.top_p is not None
    temperature = args.temperature if args.temperature is not None else float(drawn)
    names = ("max_new_tokens", "top_k", "top_p", "ignore_end", "decode", "far")
    given = {name: getattr(args, name) for name in names}
    if args.draft_tokens is not None:
        require(args.draft is not None, "--draft-tokens is for --draft; give it too, such as --draft lookup")
        require(args.draft_tokens >= 1, f"--draft-tokens {args.draft_tokens}: at least 1")
        given["draft_tokens"] = args.draft_tokens
    if args.draft is not None:
        given["draft"] = args.draft if args.draft == "lookup" else Path(args.draft)
    return TaskSection("generate", temperature=temperature, stop=_stop(args.stop), **given)


def _stop(given: list[str]) -> tuple[str, ...]:
    from astra_mpi.errors import InputError
    from astra_mpi.files.utf8 import argument_text

    try:
        return tuple(argument_text(text) for text in given)
    except InputError as exc:
        raise InputError(f"--stop: {exc}") from exc


def _prompt(args: argparse.Namespace) -> str:
    from astra_mpi.config import require
    from astra_mpi.errors import InputError
    from astra_mpi.files.utf8 import argument_text, read_text

    one = (args.prompt is None) != (args.prompt_file is None)
    require(one, "give a prompt, or --prompt-file FILE" + (", not both" if args.prompt else ""))
    if args.prompt is None:
        return read_text(args.prompt_file)
    try:
        return argument_text(args.prompt)
    except InputError as exc:
        raise InputError(f"the prompt: {exc}, or as --prompt-file") from exc


def check_family(path: str, model: Model) -> None:
    from astra_mpi.config import require
    from astra_mpi.models.decoder import Decoder

    family = model.config.family
    require(
        isinstance(model.family, Decoder), f"{path}: a {family} model generates no text; give a decoder, such as Llama"
    )


def _prompt_ids(text: str, tokenizer: Tokenizer, max_positions: int) -> np.ndarray:
    """Token ids (T,). InputError where there are none, or too many."""
    from astra_mpi.config import require

    (ids,) = tokenizer.encode([text], max_positions, lambda _: "the prompt")
    require(len(ids) > 0, "the prompt is empty, with no token to go on from; give a text")
    room = len(ids) < max_positions
    require(room, f"the prompt fills this model's {max_positions} positions; shorten it")
    return ids


def _costs(report: dict[str, Any]) -> str:
    """Times and bytes of a generation, for people."""
    made = report["generation"]
    n_new, later = made["new_tokens"][0], made["per_token_s"]["median"]
    speed = "" if later is None else f", then {1e3 * later:.2f} ms per token ({1 / later:.4g} tokens/s)"
    compute = report["choices"].get("compute", "float32")
    products = f", products in {compute}" if compute != "float32" else ""
    drafts = made.get("drafts") or {}
    if drafts.get("tokens_per_pass"):
        speed += f", {drafts['tokens_per_pass']:.2f} per pass: {drafts['accepted']} of {drafts['drafted']} drafts right"
    share = max(made["cache_bytes"]) / made["full_cache_bytes"] if made["full_cache_bytes"] else 0.0
    return (
        f"{report['strategy']} on {report['ranks']} rank{'s' * (report['ranks'] > 1)}, decode {made['decode']}"
        f"{products}:"
        f" {report['tokens'][0]} + {n_new} tokens, ended by {made['ended'][0]}\n"
        f"first token {1e3 * made['first_token_s']:.1f} ms{speed}\n"
        f"bytes contributed: prefill {sum(report['contributed_bytes'])}, decode {sum(made['decode_bytes'])};"
        f" largest cache of a rank {max(made['cache_bytes'])} bytes, {share:.1%} of the full one"
    )
