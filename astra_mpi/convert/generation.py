"""What a folder asks of generation: in generation_config.json, or in config.json where that is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from astra_mpi.checkpoint.config import same, shown
from astra_mpi.checkpoint.folder import load_object
from astra_mpi.config import require
from astra_mpi.errors import some

#: settings that change what transformers generates, and that `generate` does not have -> values that ask for nothing
ABSENT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("stop_strings", "max_time", "watermarking_config", "constraints", "force_words_ids"), ()),
    **dict.fromkeys(("penalty_alpha", "dola_layers"), ()),
    **dict.fromkeys(("num_beams", "num_return_sequences", "guidance_scale"), (1,)),
    "token_healing": (False,),
}
#: the same, of sampling
ABSENT_SAMPLING: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff", "top_h"), (0,)),
    "typical_p": (1,),
}
#: settings that `generate` is told by its own options
OWN = ("do_sample", "temperature", "top_k", "top_p", "max_length", "max_new_tokens")
#: why keys do not change what is generated, or are dealt with elsewhere -> those keys
_BY_REASON = {
    "end of a text": "eos_token_id",
    "changes how the text is computed, not the text": """use_cache cache_implementation cache_config
        max_cache_len compile_config disable_compile low_memory prefill_chunk_size continuous_batching_config""",
    "for speculative decoding, which gives the same text": """use_mtp is_assistant num_assistant_tokens
        num_assistant_tokens_schedule assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size
        assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight speculation_type""",
    "concerns what is returned beside the text": """output_attentions output_hidden_states output_scores output_logits
        return_dict_in_generate""",
    "changes all logits alike, or infinite ones only": "renormalize_logits remove_invalid_values",
    "for beam search, which `num_beams` turns on": "early_stopping length_penalty diversity_penalty num_beam_groups",
    "for texts without a prompt, or for padding": "bos_token_id pad_token_id decoder_start_token_id",
    "a record of how the folder was made": "transformers_version _from_model_config _commit_hash",
}
HARMLESS = {key: why for why, keys in _BY_REASON.items() for key in keys.split()}


def generation(folder: Path, vocab_size: int) -> tuple[list[int], list[str]]:
    """-> (end tokens: eos_token_id as transformers' generate takes it, notes on what is left aside). InputError."""
    own = folder / "generation_config.json"
    path = own if own.is_file() else folder / "config.json"
    asked = {key: value for key, value in load_object(path).items() if value is not None}
    ends, notes = _ends(path, asked.get("eos_token_id"), vocab_size)
    if path is own:
        other = load_object(folder / "config.json").get("eos_token_id")
        if asked.get("eos_token_id") is None and other is not None:
            notes.append(
                f"{path.name} names no eos_token_id, so transformers does not end a text, though config.json names"
                f" {shown(other)}; generate does the same unless told --stop"
            )
        known = {*ABSENT, *ABSENT_SAMPLING, *OWN, *HARMLESS}
        unknown = sorted(set(asked) - known)
        if unknown:
            notes.append(f"{path.name} has keys that the reference does not read: {some(list(map(shown, unknown)))}")
    return ends, notes + _left_aside(path.name, asked)


def _ends(path: Path, given: Any, vocab_size: int) -> tuple[list[int], list[str]]:
    """-> (the ids that can be generated, notes)."""
    if given is None:
        return [], []
    ids = given if isinstance(given, list) else [given]
    good = bool(ids) and all(type(i) is int for i in ids)
    require(good, f"{path}: eos_token_id = {shown(given)} must be a token id, or several")
    outside = [i for i in ids if not 0 <= i < vocab_size]
    note = (
        f"{path.name}: eos_token_id {some(list(map(str, outside)))} is outside of the vocabulary, so no text ends there"
    )
    return [i for i in ids if i not in outside], [note] if outside else []


def _left_aside(name: str, asked: dict[str, Any]) -> list[str]:
    """What `generate` does otherwise unless it is told, in sentences."""
    sampling = asked.get("do_sample") is True
    absent = ABSENT | (ABSENT_SAMPLING if sampling else {})
    missed = [key for key in absent if key in asked and not any(same(asked[key], one) for one in absent[key])]
    notes = [f"{name} asks for {_said(asked, missed)}, which generate does not have: left aside"] if missed else []
    if sampling:
        drawn = {"temperature": 1.0, "top_k": 50, "top_p": 1.0}  # the reference's defaults
        told = " ".join(f"--{key.replace('_', '-')} {shown(asked.get(key, drawn[key]))}" for key in drawn)
        wanted = _said(asked, ["do_sample", *(key for key in drawn if key in asked)])
        notes.append(f"{name} asks for {wanted}; generate takes the likeliest token unless told {told}")
    lengths = [key for key in ("max_length", "max_new_tokens") if key in asked]
    if lengths:
        notes.append(f"{name} asks for {_said(asked, lengths)}; generate is told --max-new-tokens")
    return notes


def _said(asked: dict[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} = {shown(asked[key])}" for key in keys)
