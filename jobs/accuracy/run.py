"""What accuracy each bit buys: an experiment deck is trained row by row, seed by seed, and measured at P ranks.

python jobs/accuracy/run.py run DECK.toml [--rows A,B] [--seeds 0,1]   one JSON per row and seed; what is there stays
python jobs/accuracy/run.py render FOLDER...  -o docs/log/accuracy.md --plot docs/log/accuracy.svg  tables of all

An experiment deck names a training deck (`base`), seeds, ranks, and [[rows]]: `name`, `set` (overrides of the training
deck), or `train = false` (k-means, or the model's codebooks), `rival` (int8 or means:RATIO instead of codebooks),
`start` (another row's model instead of the base's), and `at` (conditions, which may name another test of the task).
P ranks are computed by the differentiable twin, which equals the engine (tests/train/test_twin.py).
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from mpi4py import MPI
from plot import draw
from rivals import rival
from tables import table

from astra_mpi.config import require
from astra_mpi.errors import AstraError
from astra_mpi.files import codecfile, modelfile, whole
from astra_mpi.files.modelfile import ModelFile
from astra_mpi.train.codes.codebooks import Codebooks
from astra_mpi.train.cuts import make_view
from astra_mpi.train.data import open_items
from astra_mpi.train.deck import TrainDeck, load_train_deck, resolved
from astra_mpi.train.evaluate import answer
from astra_mpi.train.loop import Run
from astra_mpi.train.start import open_data, starting_codec, starting_model
from astra_mpi.train.twin import Twin

BATCH = 128
RESAMPLES = 1000


def evaluated(model: ModelFile, deck: TrainDeck, task: dict, at: dict, instead: str | None = None) -> np.ndarray:
    """(n, 2) per item what `figure` needs, at the conditions `at`: ranks, weights, loss, class_token, test, first.

    `instead` of codebooks: a rival's name.
    """
    twin = Twin(model.config, model.weights)
    codebooks = None
    if model.codec is not None and at["ranks"]:
        late = deck.codec.codes == "late"
        codebooks = Codebooks(model.codec, False, first=at.get("first", deck.codec.first), late=late)
    items = open_items(deck.data, Path(task["tests"][at.get("test", "")]), model, task["metric"] == "accuracy")
    order = np.argsort(items.lengths, kind="stable")[: task.get("items")]
    rng = np.random.default_rng(0)
    found = []
    for a in range(0, len(order), BATCH):
        batch = items.part(order[a : a + BATCH])
        size = max(at["ranks"], 1)
        shape = (model.config.n_layers, len(batch.places), size, size)
        missing = rng.random(shape) < at["loss"] if at.get("loss") else None
        options = {"missing": missing, "replicas": 1 if at.get("class_token") == "single" else None}
        inputs = torch.from_numpy(batch.inputs)
        if instead is not None and at["ranks"]:
            out = with_rival(twin, instead, inputs, batch.keep, size)
        else:
            out = answer(twin, codebooks, inputs, batch.keep, size, at.get("weights"), **options)
        found.append(per_item(out, batch, inputs))
    values = np.concatenate(found)
    return values[np.argsort(order, kind="stable")]


@torch.no_grad()
def with_rival(twin: Twin, name: str, inputs: torch.Tensor, keep: np.ndarray, size: int) -> torch.Tensor:
    """What `size` ranks answer that send as a rival does."""
    sender, ratio = rival(name)
    view = make_view(keep, twin.config.n_class, size, None, causal=twin.causal, sends=True)
    return twin(inputs, view, sender(view, ratio))


def per_item(out: torch.Tensor, batch, inputs: torch.Tensor) -> np.ndarray:
    """(B, width): right or wrong; sum and number of negative log-likelihoods; or the embedding."""
    if out.ndim == 3:
        log_p = out[:, :-1].float().log_softmax(dim=-1)
        nll = -log_p.gather(2, inputs[:, 1:, None])[..., 0]
        kept = torch.from_numpy(batch.keep[:, 1:])
        return torch.stack([(nll * kept).sum(dim=1), kept.sum(dim=1)], dim=1).numpy()
    if batch.labels is not None:
        return (out.argmax(dim=1).numpy() == batch.labels)[:, None].astype(np.float64)
    return torch.nn.functional.normalize(out.float(), dim=1).numpy()


def as_cases(metric: str, values: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Independent cases for the bootstrap: pairs of sentences as (cosine, human score), else the items."""
    if metric != "spearman":
        return values
    assert scores is not None
    return np.stack([(values[0::2] * values[1::2]).sum(axis=1), scores], axis=1)


def figure(metric: str, cases: np.ndarray) -> float:
    if metric == "accuracy":
        return float(cases.mean())
    if metric == "perplexity":
        total = cases.sum(axis=0)
        return float(np.exp(total[0] / total[1]))
    from scipy.stats import spearmanr

    return float(spearmanr(cases[:, 0], cases[:, 1]).statistic)


def paired(metric: str, cases: np.ndarray, exact: np.ndarray) -> list[float]:
    """95% interval of the difference to exact (perplexity: of the ratio), the same cases resampled."""
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(RESAMPLES):
        some = rng.integers(len(cases), size=len(cases))
        a, b = figure(metric, cases[some]), figure(metric, exact[some])
        differences.append(a / b if metric == "perplexity" else a - b)
    return [float(x) for x in np.percentile(differences, [2.5, 97.5])]


def human_scores(task: dict) -> np.ndarray | None:
    if task["metric"] != "spearman":
        return None
    rows = [line.split("\t") for line in Path(task["tests"][""]).read_text(encoding="utf-8").splitlines() if line]
    return np.array([float(row[rows[0].index("score")]) for row in rows[1:]])


def trains(row: dict) -> bool:
    return row.get("train", True) and "rival" not in row


def train_row(row: dict, deck: TrainDeck) -> tuple[ModelFile, float, float]:
    """-> (trained model with its codebooks, wall seconds, core seconds)."""
    if row.get("train", True):
        run = Run(deck, MPI.COMM_SELF, 1, "experiment")
        run()
        wall_s, core_s = run.times
        if deck.output.codebooks_only:
            assert deck.model.path is not None
            base = modelfile.read_model(deck.model.path)
            model = replace(base, codec=codecfile.read_codebooks(deck.output.path, base.digest))
        else:
            model = modelfile.read_model(deck.output.path)
        deck.beside(".checkpoint.h5").unlink(missing_ok=True)
        return model, wall_s, core_s
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    model = starting_model(deck)
    deck = resolved(deck, model.config.family)
    items, _, order, _ = open_data(deck, model)
    codec = starting_codec(deck, model, items, order.items, {}, MPI.COMM_SELF, 1)
    return replace(model, codec=codec), time.monotonic() - start_s, time.process_time() - start_cpu_s


def run(args: argparse.Namespace) -> None:
    path = Path(args.deck).absolute()
    spec = tomllib.loads(path.read_text())
    tests = {"": spec["task"]["test"], **spec["task"].get("tests", {})}
    task = spec["task"] | {"tests": {name: path.parent / test for name, test in tests.items()}}
    folder = path.parent / spec["output"]
    folder.mkdir(parents=True, exist_ok=True)
    seeds = [int(s) for s in args.seeds.split(",")] if args.seeds else spec["seeds"]
    names = [row["name"] for row in spec["rows"]]
    wanted = args.rows.split(",") if args.rows else names
    unknown = [name for name in wanted if name not in names]
    require(not unknown, f"{path} has no row '{', '.join(unknown)}'; it has {', '.join(names)}")
    for seed in seeds:
        for row in spec["rows"]:
            out = folder / f"{row['name']}-{seed}.json"
            if row["name"] in wanted and not out.exists():
                print(f"{out.stem}", file=sys.stderr, flush=True)
                result = measure(row, seed, spec, task, folder, path.parent)
                whole.write_text(out, json.dumps(result, indent=1) + "\n")


def measure(row: dict, seed: int, spec: dict, task: dict, folder: Path, here: Path) -> dict:
    """Train a row with a seed and measure it at all conditions; its exact figure is that of row `exact`, or its own."""
    name = f"{row['name']}-{seed}"
    sets = [*spec.get("set", []), *row.get("set", []), f"train.seed={seed}", f"output.path={folder / name}.h5"]
    if "start" in row:
        sets.append(f"model.path={folder / row['start']}-{seed}.h5")
    deck = load_train_deck(here / spec["base"], [*sets, "train.resume=false"])
    model, wall_s, core_s = train_row(row, deck) if "rival" not in row else (starting_model(deck), 0.0, 0.0)
    scores = human_scores(task)
    metric = task["metric"]
    exact, own = {}, {}
    for test in task["tests"]:
        kept = folder / f"exact{test and '-'}{test}-{seed}.npy"
        if kept.exists() and row.get("start") == "exact" and not trains(row):
            exact[test] = own[test] = np.load(kept)
            continue
        at = {"ranks": 0, "test": test}
        own[test] = as_cases(metric, evaluated(replace(model, codec=None), deck, task, at), scores)
        if not kept.exists():
            np.save(buffer := io.BytesIO(), own[test])
            whole.write_bytes(kept, buffer.getvalue())
        exact[test] = np.load(kept)
    figures = []
    sends = model.codec is not None or "rival" in row
    for at in row.get("at", [{"ranks": p} for p in spec["ranks"]]) if sends else []:
        cases = as_cases(metric, evaluated(model, deck, task, at, row.get("rival")), scores)
        baseline = exact[at.get("test", "")]
        figures.append(
            {
                "at": at,
                "figure": figure(metric, cases),
                "exact": figure(metric, baseline),
                "difference": paired(metric, cases, baseline),
            }
        )
    config = model.codec.config if model.codec else None
    bits: float | None = config.bits_per_token if config else None
    if config and deck.codec.first == "inputs":
        bits = round(config.bits_per_token * (1 - 1 / model.config.n_layers), 2)
    if "rival" in row:
        sender, ratio = rival(row["rival"])
        bits = sender.bits_per_token(model.config.d_model, ratio)
    return {
        "experiment": spec["title"],
        "row": row["name"],
        "says": row.get("says", row["name"]),
        "seed": seed,
        "metric": metric,
        "exact": figure(metric, exact[""]),
        "own_exact": figure(metric, own[""]),
        "bits": bits,
        "width": model.config.d_model,
        "codec": config.as_dict() if config else None,
        "first": deck.codec.first,
        "learn": deck.train.learn,
        "metric_of_codes": deck.codec.metric,
        "curve": row.get("curve", True),
        "steps": deck.train.steps if trains(row) or deck.codec.init == "model" else 0,  # that made the codebooks
        "items": len(exact[""]),
        "wall_s": round(wall_s, 1),
        "core_s": round(core_s, 1),
        "figures": figures,
    }


def render(args: argparse.Namespace) -> None:
    """One table per experiment, and the picture."""
    results = [json.loads(p.read_text()) for folder in args.folders for p in sorted(Path(folder).glob("*-*.json"))]
    lines = [args.head.read_text().rstrip() if args.head else "# Accuracy"]
    for title in dict.fromkeys(r["experiment"] for r in results):
        lines += ["", f"## {title}", "", *table([r for r in results if r["experiment"] == title])]
    whole.write_text(args.output, "\n".join(lines) + "\n")
    if args.plot:
        draw(results, args.plot)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    steps = parser.add_subparsers(required=True)
    one = steps.add_parser("run")
    one.add_argument("deck")
    one.add_argument("--rows", help="names, default all")
    one.add_argument("--seeds", help="default those of the deck")
    one.set_defaults(do=run)
    other = steps.add_parser("render")
    other.add_argument("folders", nargs="+")
    other.add_argument("-o", "--output", default="docs/log/accuracy.md")
    other.add_argument("--plot", type=Path, help="picture of what is lost over bits (.svg, .png)")
    other.add_argument("--head", type=Path, help="Markdown that comes first")
    other.set_defaults(do=render)
    args = parser.parse_args()
    try:
        args.do(args)
    except AstraError as exc:
        print(f"accuracy.py: error: {exc}", file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
