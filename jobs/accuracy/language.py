"""What untrained codes cost a language model in perplexity, over the exact model's: kinds of codebooks on P ranks.

python jobs/accuracy/language.py MODEL.h5 CALIBRATION.txt TEST.txt [--rows "kv M=4;mine=FILE.h5"] [--ranks 2,4,8]
A row is a name below, or a name of your own and a file of codebooks. `--emulate` computes in one process what ranks
would (`slices.py`).
Codebooks are fitted to passages of the first text and stay in --work with all figures (language.json), so that the job
can be interrupted and goes on: a folder for each model and calibration text.
The last thing printed is a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from language_plot import Point, draw

from astra_mpi.files import whole
from astra_mpi.files.modelfile import read_model
from astra_mpi.inputs.text import tokenizer_of

DECK = Path(__file__).with_name("perplexity.toml")
_PREDICTED, _NEXT = "--predict linear --stages", "--predict next --stages"
_OUTPUT = "--predict linear --predict-rank 0 --metric output"
_INPUTS = f"{_OUTPUT} --predict-inputs 1"
#: a row's name, and the options of calibrate that make its codebooks
ROWS = {
    "normed G=1 K=1024": "--site normed --kind grouped --groups 1 --codebook-size 1024",
    "normed M=4": "--site normed --stages 4",
    "normed M=8": "--site normed --stages 8",
    "kv M=4": "--site kv --stages 4",
    "kv M=8": "--site kv --stages 8",
    "kv scalar 256": "--site kv --kind scalar --bits 256",
    "kv scalar 512": "--site kv --kind scalar --bits 512",
    "kv scalar 1024": "--site kv --kind scalar --bits 1024",
    "predicted M=2": f"{_PREDICTED} 2",
    "predicted M=4": f"{_PREDICTED} 4",
    "predicted M=8": f"{_PREDICTED} 8",
    "predicted M=16": f"{_PREDICTED} 16",
    "output 16": f"{_OUTPUT} --bits 16",
    "output 33": f"{_OUTPUT} --bits 33",
    "output 66": f"{_OUTPUT} --bits 66",
    "output 132": f"{_OUTPUT} --bits 132",
    "output 265": f"{_OUTPUT} --bits 265",
    "output M=8": f"{_OUTPUT} --stages 8",
    "inputs 10": f"{_INPUTS} --stages 0,0,1,0,1,1,2,1,2,1,0,1,1,4x2,4x3,3x2,6x0",
    "inputs 32": f"{_INPUTS} --stages 0,4x2,4x5,4x2,5,3x6,4x10,3x5,6x1",
    "inputs 61": f"{_INPUTS} --stages 0,4x3,4x9,4x4,4x11,4x20,3x10,6x2",
    "inputs 123": f"{_INPUTS} --stages 0,4x6,4x18,4x8,4x22,4x40,3x20,6x4",
    "inputs scalar 256": f"{_INPUTS} --kind scalar --bits 256",
    "inputs scalar 512": f"{_INPUTS} --kind scalar --bits 512",
    "inputs scalar 1024": f"{_INPUTS} --kind scalar --bits 1024",
    "late 6": f"{_OUTPUT} --predict-inputs 8 --stages 6",
    "late 4": f"{_OUTPUT} --predict-inputs 8 --stages 4",
    "every 2": f"{_OUTPUT} --predict-inputs 8 --stages 4 --every 2",
    "half 32": f"{_INPUTS} --stages 0,4,0,4,0,10,0,10,0,4,0,4,0,11,0,12,0,15,15,0,18,0,0,8,0,2,0,2,0,1",
    "half 61": f"{_INPUTS} --stages 0,6,0,6,0,18,0,18,0,8,0,8,0,22,0,22,0,30,30,0,36,0,0,16,0,4,0,4,0,2",
    "half 74": f"{_INPUTS} --stages 0,7,0,7,0,22,0,22,0,10,0,10,0,26,0,26,0,36,36,0,43,0,0,19,0,5,0,5,0,2",
    "half 92": f"{_INPUTS} --stages 0,9,0,9,0,28,0,28,0,12,0,12,0,32,0,32,0,45,45,0,54,0,0,24,0,6,0,6,0,2",
    "half 123": f"{_INPUTS} --stages 0,12,0,12,0,37,0,37,0,17,0,17,0,43,0,43,0,64,64,0,64,0,0,32,0,8,0,8,0,3",
    "predicted M=6": f"{_PREDICTED} 6",
    "predicted M=6 whole": f"{_PREDICTED} 6 --predict-rank 0",
    "predicted M=4 every 2": f"{_PREDICTED} 4 --every 2",
    "predicted M=8 every 2": f"{_PREDICTED} 8 --every 2",
    "next M=4": f"{_NEXT} 4",
    "next M=6": f"{_NEXT} 6",
    "next M=8": f"{_NEXT} 8",
    "next M=4 every 2": f"{_NEXT} 4 --every 2",
    "next M=8 every 2": f"{_NEXT} 8 --every 2",
    "predicted scalar 256": "--predict linear --kind scalar --bits 256",
    "predicted scalar 512": "--predict linear --kind scalar --bits 512",
}


def passages(args: argparse.Namespace) -> Path:
    """Ids of passages (n, --passage), --samples tokens in all, as a file."""
    path: Path = args.work / f"passages-{args.samples}-{args.passage}.npy"
    if not path.exists():
        model = read_model(args.model)
        tokenizer = tokenizer_of(model.tokenizer, model.config.vocab_size)
        text = args.calibration.read_text(encoding="utf-8")[: args.samples * 8]
        ids = tokenizer.encode_plain(text, str(args.calibration))
        n = min(args.samples, len(ids)) // args.passage
        np.save(path, np.array(ids[: n * args.passage]).reshape(n, args.passage))
    return path


def codebooks(args: argparse.Namespace, row: str) -> Path:
    """The file of a row's codebooks, made unless it is there."""
    if "=" in row and row not in ROWS:
        return Path(row.partition("=")[2])
    path: Path = args.work / f"{row.replace(' ', '-').replace(',', '')}-{args.samples}.h5"
    if not path.exists():
        command = ["astra-mpi", "calibrate", args.model, "--data", str(passages(args)), "-o", str(path)]
        command += ["--codebook-only", "--samples", str(args.samples), "--threads", str(args.threads)]
        subprocess.run([*command, *ROWS[row].split()], check=True)
    return path


def perplexity(args: argparse.Namespace, row: str, ranks: int) -> dict[str, Any]:
    """Of the test text, on so many ranks; row "exact": without codes."""
    if not args.emulate:
        return on_ranks(args, row, ranks)
    from slices import Slices

    drawn = args.late, args.awaited, args.loss, args.seed
    text = Slices(args.model, args.work / "test.txt", args.window, args.new, *drawn)
    return text.summary(None if row == "exact" else codebooks(args, row), ranks)


def on_ranks(args: argparse.Namespace, row: str, ranks: int) -> dict[str, Any]:
    """The same by `run`."""
    output = args.work / "out.h5"
    told = {
        "model.path": args.model,
        "input.path": args.work / "test.txt",
        "input.max_tokens": args.window,
        "task.stride": args.window,
        "parallel.strategy": "single" if row == "exact" else "astra",
        "parallel.first": "codes",
        "run.batch": 1,
        "run.resume": "false",
        "output.path": output,
    }
    if row != "exact":
        told["model.codebooks"] = codebooks(args, row)
    words = [f"{key}={value}" for key, value in told.items()]
    start = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    subprocess.run(
        [*start, "astra-mpi", "run", str(DECK), *words, *args.set],
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    summary = json.loads(output.with_suffix(".json").read_text())
    kept = ("metrics", "bits_per_token_per_block", "contributed_bytes", "formula_bytes", "choices")
    return {name: summary[name] for name in kept}


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All figures by name, those of earlier runs included."""
    path = args.work / "language.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for row in ["exact", *args.rows]:
        for ranks in [1] if row == "exact" else args.ranks:
            key = name_of(args, row, ranks)
            if key not in found and not args.known:
                found[key] = perplexity(args, row, ranks)
                whole.write_text(path, json.dumps(found, indent=1) + "\n")
                print(key, json.dumps(found[key]["metrics"]), flush=True)
    return found


def name_of(args: argparse.Namespace, row: str, ranks: int) -> str:
    """Of a figure."""
    how = args.set
    if args.emulate:
        late = "late" if args.awaited is None else f"late but {args.awaited}"
        how = ["emulated", *([f"new={args.new}"] * bool(args.new)), *([late] * args.late)]
        how += [f"loss={args.loss:g}", f"seed={args.seed}"] * (args.loss > 0 and row != "exact")
    text = f"{zlib.crc32((args.work / 'test.txt').read_bytes()):08x}"
    return "|".join([row, str(ranks), str(args.window), str(args.samples), text, *how])


def table(args: argparse.Namespace, found: dict[str, Any]) -> str:
    """Perplexity over the exact one, a row per codebooks; nothing where it is not known."""
    exact = found[name_of(args, "exact", 1)]["metrics"]["perplexity"]
    lines = [f"| codes (exact: {exact:.2f}) | bits | {' | '.join(f'P = {n}' for n in args.ranks)} |"]
    lines.append(f"|{'---|' * (2 + len(args.ranks))}")
    for row in args.rows:
        points = {n: point for n in args.ranks for point in points_of(args, found, row, n)}
        bits = next((f"{point.bits:.4g}" for point in points.values()), "")
        over = [f"{points[n].over:.3f}x" if n in points else "" for n in args.ranks]
        lines.append(f"| {row if row in ROWS else row.partition('=')[0]} | {bits} | {' | '.join(over)} |")
    return "\n".join(lines + positions(args, found))


def points_of(args: argparse.Namespace, found: dict[str, Any], row: str, ranks: int) -> list[Point]:
    """One, if the figure is known."""
    exact, figure = (found.get(name_of(args, *of)) for of in (("exact", 1), (row, ranks)))
    if exact is None or figure is None:
        return []
    over = figure["metrics"]["perplexity"] / exact["metrics"]["perplexity"]
    return [Point(figure["bits_per_token_per_block"], over, row if row in ROWS else row.partition("=")[0])]


def plotted(args: argparse.Namespace, found: dict[str, Any]) -> None:
    """The table as a picture."""
    lines = {n: [point for row in args.rows for point in points_of(args, found, row, n)] for n in args.ranks}
    draw(lines, args.plot)


def positions(args: argparse.Namespace, found: dict[str, Any]) -> list[str]:
    """A table of the same by where a token is in its window, if that is known."""
    exact = found[name_of(args, "exact", 1)]["metrics"].get("loss_at")
    if exact is None or not args.positions:
        return []
    lines = ["", f"| tokens from | {' | '.join(exact)} |", f"|{'---|' * (1 + len(exact))}"]
    for row in args.rows:
        for ranks in args.ranks:
            if name_of(args, row, ranks) not in found:
                continue
            loss = found[name_of(args, row, ranks)]["metrics"]["loss_at"]
            over = [f"{math.exp(loss[at] - exact[at]):.3f}x" for at in exact]
            lines.append(f"| {row.partition('=')[0] if row not in ROWS else row}, P = {ranks} | {' | '.join(over)} |")
    return lines


def blocks_of(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--rows", type=lambda s: s.split(";"), default=list(ROWS), help=f"some of {'; '.join(ROWS)}")
    parser.add_argument("--ranks", type=lambda s: [int(n) for n in s.split(",")], default=[4], help="default 4")
    parser.add_argument("--bytes", type=int, default=44_000, help="of the test text (default %(default)s)")
    parser.add_argument("--window", type=int, default=1024, help="tokens (default %(default)s)")
    parser.add_argument("--samples", type=int, default=16384, help="tokens to fit to (default %(default)s)")
    parser.add_argument("--passage", type=int, default=512, help="tokens of a passage (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of calibrate (default %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], help="more settings of the run, such as parallel.codes=late")
    parser.add_argument("--emulate", action="store_true", help="in one process, without --set")
    parser.add_argument("--new", type=int, default=0, help="with --emulate: last tokens of a window, decoded after it")
    parser.add_argument("--late", action="store_true", help="with --emulate: predicted codes as astra:late has them")
    parser.add_argument(
        "--awaited", type=blocks_of, help="with --late: blocks that wait for their own codes, 17,18,20 or ''"
    )
    parser.add_argument("--loss", type=float, default=0, help="with --emulate: share of predicted codes' messages lost")
    parser.add_argument("--seed", type=int, default=0, help="of what --loss loses (default %(default)s)")
    parser.add_argument("--positions", action="store_true", help="with --emulate: a table by position, too")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="the table as a picture, too")
    parser.add_argument("--known", action="store_true", help="only figures that --work has; nothing is measured")
    parser.add_argument("--work", type=Path, default=Path("work/language"), help="default %(default)s")
    args = parser.parse_args()
    unknown = [row for row in args.rows if row not in ROWS and not Path(row.partition("=")[2]).is_file()]
    if not args.emulate and (args.new or args.positions or args.late or args.loss):
        parser.error("--new, --late, --loss and --positions are figures of --emulate; add it")
    if args.awaited is not None and not args.late:
        parser.error("--awaited is of late codes; add --late")
    if not 0 <= args.loss <= 1 or args.seed < 0:
        parser.error(f"--loss {args.loss:g} --seed {args.seed}: a share such as 0.05, and a seed of at least 0")
    if args.new and args.positions:
        parser.error("--positions is of whole windows; leave --new out")
    if not 0 <= args.new < args.window - 1:
        parser.error(f"--new {args.new}: 0 to {args.window - 2} tokens of a window of {args.window}")
    if args.emulate and args.set:
        parser.error("--set is of a run on ranks; leave --emulate out")
    if unknown:
        parser.error(f"no row is called {unknown[0]!r}; use some of {'; '.join(ROWS)}, or NAME=FILE.h5")
    if min(args.samples, args.window, args.passage) < 2 or not all(math.isfinite(n) and n > 0 for n in args.ranks):
        parser.error("--samples, --window and --passage are two tokens at least, --ranks are positive")
    args.work.mkdir(parents=True, exist_ok=True)
    text = args.test.read_bytes()[: args.bytes].decode("utf-8", errors="ignore")
    whole.write_text(args.work / "test.txt", text)
    found = measured(args)
    print(table(args, found))
    if args.plot:
        plotted(args, found)


if __name__ == "__main__":
    main()
