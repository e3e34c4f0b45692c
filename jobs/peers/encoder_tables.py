"""Tables of what texts.py and encoders.py have measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from contestants import NODES, OURS, of_encoder
from verdicts import markdown, peer_and_title

ENCODERS = {
    "vit-196": "ViT-Base, one image of 224 x 224 pixels (197 tokens)",
    "vit-1024": "ViT-Base, one image of 512 x 512 pixels (1025 tokens)",
    "minilm-256": "MiniLM, one text of 256 tokens",
}


def of_texts(told: dict[str, Any]) -> str:
    """What texts.py has measured."""
    rows = [
        [name, f"{one['median_ms']:.0f}", f"{one['min_ms']:.0f}", f"{one['off']:.1e}"]
        for name, one in told["found"].items()
    ]
    title = f"{told['model']}, {told['items']} passages, CPU milliseconds; off by: the largest difference from `torch`."
    return f"{title}\n\n" + markdown(["", "median", "least", "off by"], rows)


def of_encoders(cells: dict[str, Any], encoder: str) -> str:
    """What encoders.py has measured of one: medians; beside those of four nodes, how much sooner than the best peer."""

    def ms(place: str, name: str) -> float | None:
        found = cells.get(f"{place} {encoder} {name}")
        return 1e3 * float(np.median(found["pass_cpu_s" if place == "core" else "pass_s"])) if found else None

    everyone = of_encoder(encoder)
    links = sorted({place for place, *_ in map(str.split, cells) if place not in ("core", "node")}, key=float)
    best = min((x for one in everyone if one.peer != OURS and (x := ms("node", one.name))), default=None)
    rows = []
    for one in everyone:
        found = {place: ms(place, one.name) for place in ("core", "node", *links)}
        known = [cells[f"{place} {encoder} {one.name}"] for place, value in found.items() if value]
        if not known:
            continue
        shown = [
            "-" if not value else f"{value:.0f}{f' ({best / value:.2f}x)' if best and place in links else ''}"
            for place, value in found.items()
        ]
        sent = f"{np.median(known[-1]['sent_bytes']) / 1e6:.3g} MB" if one.nodes > 1 else "-"
        off = "-" if encoder.startswith("vit") and "astra" in one.name else f"{known[-1]['off']:.1e}"
        where = f"{NODES} nodes" if one.nodes > 1 else "one node"
        rows.append([f"{peer_and_title(one)}, {where}", *shown, sent, f"{known[-1]['peak_bytes'] / 1e6:.0f}", off])
    heads = ["", "core: CPU ms", "node: ms", *(f"{link} Mbit/s: ms" for link in links), "on the wires", "peak MB"]
    return markdown([*heads, "off by"], rows)
