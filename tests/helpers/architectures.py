"""Small models of every decoder that is a mapping onto the shared blocks: odd sizes, each option in one of them."""

SIZES = dict(vocab_size=53, hidden_size=36, num_hidden_layers=3, intermediate_size=37, max_position_embeddings=20)
SIZES |= dict(num_attention_heads=6, num_key_value_heads=2, bos_token_id=0, eos_token_id=0, pad_token_id=None)
OWN_HEAD = SIZES | dict(head_dim=10)  # wider than hidden_size / num_attention_heads
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
YARN = dict(rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=8, beta_fast=2)
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
LLAMA3 |= dict(original_max_position_embeddings=16)
LONGROPE = dict(rope_type="longrope", rope_theta=100.0, short_factor=[1.0, 1.5, 2.0], long_factor=[2.0, 3.0, 4.5])
LOCAL = {"full_attention": dict(rope_type="linear", factor=2.0, rope_theta=500.0)}
LOCAL |= {"sliding_attention": dict(rope_type="default", rope_theta=20.0)}
MULTIPLIERS = dict(embedding_multiplier=3.0, logits_scaling=2.5, residual_multiplier=0.6, attention_multiplier=0.21)
GEMMA2 = OWN_HEAD | dict(sliding_window=5, query_pre_attn_scalar=7, attention_bias=True)
QWEN3 = OWN_HEAD | dict(attention_bias=True, layer_types=SLIDING, use_sliding_window=True, sliding_window=4)
QUARTER = dict(rope_theta=50.0, partial_rotary_factor=0.4)
NEOX = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"} | dict(hidden_size=60)
OPT = {key: value for key, value in NEOX.items() if key != "intermediate_size"} | dict(ffn_dim=41)

#: name -> class of transformers, its settings, its way to attend (soft caps are in one only)
ARCHITECTURES = {
    "mistral": ("MistralForCausalLM", OWN_HEAD | dict(sliding_window=4), "sdpa"),
    "mistral-yarn": ("MistralForCausalLM", SIZES | dict(sliding_window=None, rope_parameters=YARN), "sdpa"),
    "qwen2": ("Qwen2ForCausalLM", SIZES | dict(use_sliding_window=True, sliding_window=3, max_window_layers=1), "sdpa"),
    "qwen2-tied": ("Qwen2ForCausalLM", SIZES | dict(tie_word_embeddings=True, rope_parameters=LLAMA3), "sdpa"),
    "qwen3": ("Qwen3ForCausalLM", QWEN3, "sdpa"),
    "gemma": ("GemmaForCausalLM", OWN_HEAD | dict(attention_bias=True), "sdpa"),
    "gemma-untied": ("GemmaForCausalLM", OWN_HEAD | dict(tie_word_embeddings=False), "sdpa"),
    "gemma2": ("Gemma2ForCausalLM", GEMMA2 | dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0), "eager"),
    "gemma3": (
        "Gemma3ForCausalLM",
        GEMMA2 | dict(rope_parameters=LOCAL, layer_types=SLIDING, final_logit_softcapping=3.0),
        "sdpa",
    ),
    "phi3": (
        "Phi3ForCausalLM",
        SIZES | dict(sliding_window=6, rope_parameters=dict(partial_rotary_factor=0.7)),
        "sdpa",
    ),
    "phi3-long": (
        "Phi3ForCausalLM",
        SIZES | dict(rope_parameters=LONGROPE, original_max_position_embeddings=9),
        "sdpa",
    ),
    "granite": ("GraniteForCausalLM", SIZES | MULTIPLIERS | dict(attention_bias=True, mlp_bias=True), "sdpa"),
    "granite-tied": ("GraniteForCausalLM", SIZES | MULTIPLIERS | dict(tie_word_embeddings=True), "sdpa"),
    "smollm3": (
        "SmolLM3ForCausalLM",
        SIZES | dict(no_rope_layers=[1, 0, 1], use_sliding_window=True, sliding_window=5, mlp_bias=True),
        "sdpa",
    ),
    "olmo2": ("Olmo2ForCausalLM", SIZES | dict(attention_bias=True), "sdpa"),
    "gpt_neox": ("GPTNeoXForCausalLM", NEOX | dict(rope_parameters=QUARTER), "sdpa"),
    "gpt_neox-serial": (
        "GPTNeoXForCausalLM",
        NEOX | dict(use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True),
        "sdpa",
    ),
    "opt": ("OPTForCausalLM", OPT, "sdpa"),
    "opt-unbiased": ("OPTForCausalLM", OPT | dict(enable_bias=False, tie_word_embeddings=False), "sdpa"),
    "starcoder2": ("Starcoder2ForCausalLM", SIZES | dict(sliding_window=4), "sdpa"),
    "starcoder2-unbiased": ("Starcoder2ForCausalLM", SIZES | dict(use_bias=False, tie_word_embeddings=False), "sdpa"),
    "stablelm": ("StableLmForCausalLM", NEOX | dict(num_key_value_heads=2, use_qkv_bias=True), "sdpa"),
    "stablelm-parallel": (
        "StableLmForCausalLM",
        NEOX | dict(num_key_value_heads=3, use_parallel_residual=True, qk_layernorm=True, rope_parameters=QUARTER),
        "sdpa",
    ),
}


def on_ranks():
    """Configs of a model of each kind that between them have every part, for random weights; name -> config, site."""
    from astra_mpi.models import FAMILIES

    base = dict(d_model=36, n_heads=6, n_kv_heads=2, n_layers=3, d_ff=37, activation="silu", norm_eps=1e-5)
    base |= dict(vocab_size=53, max_positions=24, rope_theta=50.0)
    plain = base | dict(n_kv_heads=6, activation="gelu")
    learnt = {key: value for key, value in plain.items() if key != "rope_theta"}
    made = {
        "mistral": (base | dict(d_head=10, windows=(5, 5, 5)), "kv"),
        "qwen3": (base | dict(biased=("q", "o"), windows=(0, 4, 4)), "normed"),
        "gemma2": (base | dict(d_head=10, windows=(5, 0, 5), score_scale=0.4, score_cap=1.5, logit_cap=3.0), "hidden"),
        "gemma3_text": (
            base | dict(windows=(4, 0, 4), rope_local_theta=9, rope_type="linear", rope_factor=2.0),
            "kv",
        ),
        "phi3": (
            base
            | dict(rope_type="longrope", rope_short=(1.0, 1.5, 2.0), rope_long=(2.0, 3.0, 4.5), rope_scale=1.2)
            | dict(rope_trained_positions=9, tied=False),
            "normed",
        ),
        "smollm3": (base | dict(unturned=(1,), windows=(0, 5, 0)), "hidden"),
        "olmo2": (base | dict(rope_type="yarn", rope_factor=3.0, rope_ramp=(0.0, 2.0), rope_scale=1.1), "hidden"),
        "gpt_neox": (plain | dict(rope_width=4, parallel=True, biased=("q", "k", "v", "o", "fc1", "fc2")), "kv"),
        "stablelm": (base | dict(rope_width=4, parallel=True, head_norms=True), "normed"),
        "starcoder2": (base | dict(activation="gelu_tanh", windows=(3, 3, 3)), "hidden"),
        "opt": (learnt | dict(activation="relu"), "hidden"),
    }
    return {name: (FAMILIES[name].Config(**settings), site) for name, (settings, site) in made.items()}
