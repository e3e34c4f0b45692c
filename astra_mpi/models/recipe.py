"""What blocks are made of, named part by part, and the weights that follow from it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from astra_mpi.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
#: how queries and keys are normalised after their projection, see `HeadNorm`
QK_NORMS = ("", "head", "heads", "whole")


@dataclass(frozen=True)
class Recipe:
    """The named parts of a family's blocks. Widths, scores and windows are the config's (`ModelConfig`)."""

    norm_first: bool  # normalised before attention and MLP, or after each residual sum
    rms: bool = False  # RMSNorm without a bias, else LayerNorm
    gated: bool = False  # MLP: (x W_fc1) * act(x W_gate), else act(x W_fc1)
    rotary: bool = False  # queries and keys are turned by their positions (RoPE)
    relative: bool = False  # scores get a bias by the distance of key and query (`Family.relative`)
    input_norms: bool = True  # with norm_first: False leaves out the norms before attention and MLP
    output_norms: bool = False  # what attention and MLP give is normalised before it is added
    parallel: bool = False  # attention and MLP both start from the block's input
    shared_norm: bool = False  # of parallel ones: the MLP takes what the attention takes, and there is no norm2
    qk_norm: str = ""  # queries and keys are normalised: one of QK_NORMS

    @property
    def normalises_input(self) -> bool:
        """Whether a norm lies between the block's input and its projections."""
        return self.norm_first and self.input_norms

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of the norms inside a block, but those of queries and keys."""
        inputs = ("norm1",) if self.shared_norm else ("norm1", "norm2")
        return (inputs if self.input_norms else ()) + (("post1", "post2") if self.output_norms else ())


def block_shapes(config: ModelConfig, recipe: Recipe | None = None, unbiased: Collection[str] = ()) -> Shapes:
    """Names and shapes of the weights of all blocks; linear layers are (in, out), those `unbiased` have no bias."""
    recipe = recipe or Recipe(norm_first=True)
    d, q, kv, f = config.d_model, config.d_queries, config.d_kv, config.d_ff
    linears = {"q": (d, q), "k": (d, kv), "v": (d, kv), "o": (q, d), "fc1": (d, f), "fc2": (f, d)}
    if recipe.gated:
        linears["gate"] = (d, f)
    shapes: Shapes = {}
    for i in range(config.n_layers):
        for name, shape in linears.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            if name not in unbiased:
                shapes[f"blocks.{i}.{name}.bias"] = shape[1:]
        for name in recipe.norms:
            shapes[f"blocks.{i}.{name}.weight"] = (d,)
            if not recipe.rms:
                shapes[f"blocks.{i}.{name}.bias"] = (d,)
        for name, width in {"q_norm": q, "k_norm": kv}.items() if recipe.qk_norm else ():
            shapes[f"blocks.{i}.{name}.weight"] = (config.d_head if recipe.qk_norm == "head" else width,)
    return shapes
