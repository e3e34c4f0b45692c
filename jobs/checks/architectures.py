"""The table of architectures in docs/reference/architectures.md, from the families themselves.

    python jobs/checks/architectures.py --write

A row says what a family's blocks are made of, which classes of transformers it takes, and which strategies can be used
on three ranks, on a small model that has every part (tests/helpers/architectures.py). Its tests
(tests/models/test_architectures.py) hold the page against this, logits against transformers, and strategies against
the oracle.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.models import FAMILIES
from astra_mpi.models.decoder import Decoder
from astra_mpi.strategies import STRATEGIES, parse

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "architectures.md"
BEGIN, END = "<!-- made by jobs/checks/architectures.py --write -->", "<!-- end -->"
RANKS = 3
_TRIED = ("sp", "tp", "bp", "segment_means:8", "astra")


def table() -> str:
    """A row per family that is a recipe and a mapping."""
    head = (
        "| `model_type` | classes | norms | positions | attention | MLP | strategies |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "".join(f"| {' | '.join(_row(name, *of))} |\n" for name, of in sorted(_all().items()))


def _all() -> dict[str, tuple[Any, Any]]:
    """Name -> (family, a small config of it that has every part)."""
    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.architectures import on_ranks

    small = {name: config for name, (config, _) in on_ranks().items()}
    simple = {
        name: family
        for name, family in FAMILIES.items()
        if issubclass(family, Decoder) and name not in ("gpt2", "llama")
    }
    plain = next(config for name, config in small.items() if name == "mistral")
    made = {}
    for name, family in simple.items():
        fields = {"d_model": 36, "n_heads": 6, "n_kv_heads": 2, "n_layers": 3, "d_ff": 37, "activation": "silu"}
        fields |= {"norm_eps": 1e-5, "vocab_size": plain.vocab_size, "max_positions": 24}
        fields |= {"windows": (5, 0, 5)} if "sliding_window" in family.reference.fields else {}
        made[name] = family, small[name] if name in small else family.Config(**fields)
    return made


def _row(name: str, family: Any, config: Any) -> list[str]:
    recipe, classes = family.recipe_of(config), family.reference.architectures
    kind = "RMSNorm" if recipe.rms else "LayerNorm"
    where = [word for word, has in (("before", recipe.input_norms), ("of what comes out", recipe.output_norms)) if has]
    heads = {"": "", "head": ", queries and keys head by head", "heads": ", queries and keys head by head, if set"}
    heads["whole"] = ", queries and keys as a whole"
    norms = f"{kind} {' and '.join(where)}{heads[recipe.qk_norm]}"
    return [f"`{name}`", ", ".join(f"`{one}`" for one in classes), norms, *_parts(recipe, config), _strategies(config)]


def _parts(recipe: Any, config: Any) -> list[str]:
    positions = "learnt"
    if recipe.rotary:
        rotary = (
            ["rotary"] + ["part of a head"] * bool(config.rope_width) + ["not in all blocks"] * bool(config.unturned)
        )
        positions = ", ".join(rotary + ["another theta in windows"] * bool(config.rope_local_theta))
    attention = ["windows"] * any(config.windows) + ["soft cap"] * bool(config.score_cap)
    attention += ["own scale"] * bool(config.score_scale)
    mlp = ["gated" if recipe.gated else "plain"]
    mlp += (["beside the attention, one norm"] if recipe.shared_norm else ["beside the attention"]) * recipe.parallel
    return [positions, ", ".join(attention) or "full", ", ".join(mlp)]


def _strategies(config: Any) -> str:
    """Those that can be used, `astra` with codebooks."""
    codec = Codec.__new__(Codec)  # never looked at: a strategy asks whether there is one
    object.__setattr__(codec, "config", CodecConfig())
    usable = []
    for spec in map(parse, _TRIED):
        if STRATEGIES[spec.name].obstacle(spec, config, codec, RANKS) is None:
            usable.append(f"`{spec.name}`")
    return ", ".join(["`single`", *usable])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    if parser.parse_args().write:
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{head}{BEGIN}\n\n{table()}\n{END}{rest.split(END)[1]}")
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
