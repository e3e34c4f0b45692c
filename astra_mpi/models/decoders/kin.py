"""What the decoders after Llama share: rotary positions, an optional window, and a mapping of names with exceptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np

from astra_mpi.checkpoint.config import HFConfig
from astra_mpi.checkpoint.reference import GUARDED_DECODER
from astra_mpi.checkpoint.tensors import Tensors
from astra_mpi.config import optional, require
from astra_mpi.device.xp import take
from astra_mpi.layout import Layout
from astra_mpi.models.batch import Batch
from astra_mpi.models.decoder import Decoder, DecoderConfig, causal_layers, embedding_shapes, tied_head
from astra_mpi.models.hf import Source, half_turns, map_names
from astra_mpi.models.recipe import Recipe, Shapes, block_shapes
from astra_mpi.models.rope_settings import rope_fields, rope_settings
from astra_mpi.models.rotary import Rotary, RotaryConfig

LINEARS = ("q", "k", "v", "o", "gate", "fc1", "fc2")
#: names of Llama's layers in blocks, which most have
LLAMA_BLOCK: Mapping[str, str] = MappingProxyType(
    {name: f"self_attn.{name}_proj" for name in "qkvo"}
    | {"gate": "mlp.gate_proj", "fc1": "mlp.up_proj", "fc2": "mlp.down_proj"}
    | {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
)
_HEADS = ("id2label", "num_labels", "classifier_dropout")
HARMLESS_KIN: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(_HEADS, "of a head that is not part of what is converted")
    | {"mlp_layer_types": "of mixtures of experts", "num_heads": "of other models' caches"}
    | dict.fromkeys(("hidden_dropout", "residual_dropout", "embedding_dropout"), "acts in training only")
)


def guarded(*own: str) -> dict[str, tuple[Any, ...]]:
    """`GUARDED_DECODER` without keys that are fields of the class."""
    return {key: passing for key, passing in GUARDED_DECODER.items() if key not in own}


@dataclass(frozen=True)
class KinConfig(RotaryConfig, DecoderConfig):
    """Rotary positions, and which layers have a bias."""

    biased: tuple[str, ...] = optional(())  # linear layers of a block with a bias
    parallel: bool = optional(False)  # attention and MLP both start from the block's input

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            set(self.biased) <= set(LINEARS), f"config: biased = {list(self.biased)} must be of {', '.join(LINEARS)}"
        )

    @property
    def unbiased(self) -> tuple[str, ...]:
        return tuple(name for name in LINEARS if name not in self.biased)


class Kin(Rotary, Decoder):
    """A family of this kin says its recipe, its config, and what its layers are called."""

    Config: ClassVar[type[KinConfig]] = KinConfig
    recipe = Recipe(norm_first=True, rms=True, gated=True, rotary=True)
    default_site = "kv"
    hf_prefix = "model."
    hf_anchor = "embed_tokens.weight"
    hf_blocks = ("layers.",)
    hf_constants: ClassVar[tuple[str, ...]] = (".rotary_emb.inv_freq", "lm_head.weight")
    hf_names: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"embed.word": "embed_tokens.weight", "norm": "norm", "head": "lm_head"}
    )
    hf_block: ClassVar[Mapping[str, str]] = LLAMA_BLOCK

    PRESETS: ClassVar[dict[str, Callable[[int | None], Any]]] = {}

    def embed(self, batch: Batch, layout: Layout) -> np.ndarray:
        """-> rows (n, D) of this rank."""
        return take(self.w["embed.word"], batch.values[self.tokens_here(batch, layout)])

    @classmethod
    def weight_shapes(cls, config: Any) -> Shapes:
        recipe, d = cls.recipe_of(config), config.d_model
        norm: Shapes = {"norm.weight": (d,)} | ({} if recipe.rms else {"norm.bias": (d,)})
        return embedding_shapes(config) | norm | block_shapes(config, recipe, config.unbiased)

    @classmethod
    def hf_weights(cls, config: Any) -> dict[str, Source]:
        """Canonical name -> Hugging Face tensor."""
        return cls.hf_mapped(config)

    @classmethod
    def hf_mapped(cls, config: Any) -> dict[str, Source]:
        """Names alone, and rows in the order in which this package turns them."""
        mapped = map_names(cls.weight_shapes(config), dict(cls.hf_names), dict(cls.hf_block), "layers.{}")
        return halves(config, mapped)


def halves(config: Any, mapped: dict[str, Source]) -> dict[str, Source]:
    """Rows of queries and keys, and of their norms, reordered where only a part of each head turns."""
    if not config.rope_width:
        return mapped
    n_heads = {"q": config.n_heads, "q_norm": config.n_heads, "k": config.n_kv_heads, "k_norm": config.n_kv_heads}
    for name, source in mapped.items():
        layer = name.split(".")[-2]
        if name.startswith("blocks.") and layer in n_heads:
            rows = half_turns(n_heads[layer], config.d_head, config.rope_width)
            if source.rows is not None:
                taken = np.arange(source.n_rows)[source.rows if isinstance(source.rows, slice) else list(source.rows)]
                mapped[name] = source._replace(rows=tuple(taken[list(rows)].tolist()))
            else:
                mapped[name] = source._replace(rows=rows, n_rows=len(rows))
    return mapped


def folded(mapped: dict[str, Source], scales: Mapping[str, float], offsets: Mapping[str, float] | None = None) -> None:
    """In place: weights of whole names, or of the layers of all blocks, with their factors and offsets."""
    for name, source in mapped.items():
        layer = name.rpartition(".")[0]
        key = layer.split(".")[-1] if name.startswith("blocks.") else name if name in scales else layer
        offset = (offsets or {}).get(key, 0.0)
        mapped[name] = source._replace(scale=source.scale * scales.get(key, 1.0), offset=offset)


def heads_of(hf: HFConfig, d_head: int | None = None) -> dict[str, Any]:
    """Widths and heads; `d_head` None: hidden_size / num_attention_heads."""
    if d_head is None:
        d_model, n_heads = hf.heads("hidden_size", "num_attention_heads")
        d_head = d_model // n_heads
    else:
        d_model, n_heads = hf.integer("hidden_size"), hf.integer("num_attention_heads")
    n_kv_heads = n_heads
    if hf.reference.has("num_key_value_heads") and hf.get("num_key_value_heads") is not None:
        n_kv_heads = hf.integer("num_key_value_heads")
    require(
        n_heads % n_kv_heads == 0,
        f"num_attention_heads = {n_heads} is not a multiple of num_key_value_heads = {n_kv_heads}",
    )
    return {"d_model": d_model, "n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_head": d_head}


def n_layers_of(hf: HFConfig) -> int:
    """Blocks. InputError where config.json gives them windows that its class does not know."""
    knows = hf.reference.has("layer_types") or hf.reference.why_harmless("layer_types")
    return hf.integer("num_hidden_layers") if knows else causal_layers(hf, "num_hidden_layers")


def own_head_dim(hf: HFConfig) -> int | None:
    """head_dim where config.json has a number, or the class a default."""
    return None if hf.get("head_dim") is None else hf.integer("head_dim")


def kin_fields(
    hf: HFConfig,
    tensors: Tensors,
    heads: Mapping[str, Any],
    *,
    eps: str = "rms_norm_eps",
    act: str = "hidden_act",
    word: str = "embed_tokens.weight",
    head: str = "lm_head.weight",
    theta: float = 10000.0,
    part: float | None = None,
    rope_names: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Fields of a `KinConfig` that all read alike."""
    positions = hf.integer("max_position_embeddings")
    return dict(
        **heads,
        n_layers=n_layers_of(hf),
        d_ff=hf.integer("intermediate_size"),
        activation=hf.activation(act),
        norm_eps=hf.number(eps),
        vocab_size=hf.integer("vocab_size"),
        max_positions=positions,
        tied=tied_head(hf, tensors, word, head),
        **rope_fields(rope_settings(hf, positions, heads["d_head"], theta, part, names=rope_names)),
    )
