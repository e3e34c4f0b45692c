"""The figures of jobs/accuracy/run.py as Markdown: mean over seeds, spread, the widest of their paired intervals."""

from __future__ import annotations

import numpy as np


def table(results: list[dict]) -> list[str]:
    metric = results[0]["metric"]
    form = {"accuracy": "{:.1%}", "perplexity": "{:.2f}", "spearman": "{:.4f}"}[metric]
    rows = {name: [r for r in results if r["row"] == name] for name in dict.fromkeys(r["row"] for r in results)}
    exact = list({r["seed"]: r["exact"] for r in rows.get("exact", results)}.values())
    is_ratio = metric == "perplexity"
    lines = [
        f"{metric.capitalize()} of {results[0]['items']} cases. The exact model has {spread(exact, form)} over"
        f" {len(exact)}"
        f" seed{'s' * (len(exact) > 1)}. A cell has the mean over seeds [lowest..highest]"
        f"{', its ratio to exact,' * is_ratio} and in brackets an interval of the"
        f" {'ratio' if is_ratio else 'difference'} to exact: the widest of the paired 95% intervals of the seeds.",
        "",
    ]
    columns = list(dict.fromkeys(words(f["at"]) for r in results for f in r["figures"]))
    lines.append("| | bits | " + " | ".join(columns) + " | minutes, core hours |")
    lines.append("|---|---|" + "---|" * (len(columns) + 1))
    for seeds in rows.values():
        if not any(r["figures"] for r in seeds):
            continue
        cells = []
        for column in columns:
            hits = [f for r in seeds for f in r["figures"] if words(f["at"]) == column]
            cells.append(cell(hits, form, metric) if hits else "")
        minutes, core_hours = (np.mean([r[key] for r in seeds]) / s for key, s in (("wall_s", 60), ("core_s", 3600)))
        cells.append(f"{minutes:.1f}, {core_hours:.2f}")
        lines.append(f"| {seeds[0]['says']} ({len(seeds)}) | {seeds[0]['bits']} | " + " | ".join(cells) + " |")
    return lines


def spread(values: list[float], form: str) -> str:
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} [{form.format(min(values))}..{form.format(max(values))}]"


def cell(hits: list[dict], form: str, metric: str) -> str:
    low, high = min(f["difference"][0] for f in hits), max(f["difference"][1] for f in hits)
    sign = "{:.3f}" if metric == "perplexity" else "{:+.1%}" if metric == "accuracy" else "{:+.4f}"
    ratio = f", {np.mean([f['figure'] / f['exact'] for f in hits]):.3f}x" if metric == "perplexity" else ""
    return f"{spread([f['figure'] for f in hits], form)}{ratio} ({sign.format(low)}..{sign.format(high)})"


def words(at: dict) -> str:
    extra = []
    if "weights" in at:
        extra.append("uneven " + ":".join(f"{w:g}" for w in at["weights"]))
    if at.get("loss"):
        extra.append(f"{at['loss']:.0%} missing")
    if at.get("class_token") == "single":
        extra.append("one class token")
    if at.get("first") == "inputs":
        extra.append("first block from inputs")
    if "test" in at:
        extra.append(f"on {at['test']}")
    return " ".join([f"P = {at['ranks']}", *extra])
