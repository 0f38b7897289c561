"""State-space models and the hybrid: Mamba, Mamba-2 and Jamba, in files of transformers and of Mamba's authors."""

from .case import Case

MAMBA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "state_size": 5,
    "num_hidden_layers": 3,
}
MAMBA2 = {
    "vocab_size": 61,
    "hidden_size": 32,
    "state_size": 6,
    "num_hidden_layers": 2,
    "num_heads": 8,
    "head_dim": 8,
    "n_groups": 2,
    "chunk_size": 4,
    "time_step_limit": (0.0, float("inf")),
}
JAMBA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "attn_layer_period": 4,
    "attn_layer_offset": 2,
    "mamba_d_state": 5,
    "mamba_dt_rank": 3,
}


def mamba(soak=True, **options) -> Case:
    values = {**MAMBA, **options.pop("values", {})}
    return Case("MambaForCausalLM", "MambaConfig", values, soak=soak, **options)


def mamba2(soak=True, **options) -> Case:
    values = {**MAMBA2, **options.pop("values", {})}
    return Case("Mamba2ForCausalLM", "Mamba2Config", values, soak=soak, **options)


def jamba(soak=True, **options) -> Case:
    values = {**JAMBA, **options.pop("values", {})}
    return Case(options.pop("model", "JambaForCausalLM"), "JambaConfig", values, soak=soak, **options)


AUTHORS = {"d_model": 32, "n_layer": 3, "vocab_size": 57, "pad_vocab_size_multiple": 8, "rms_norm": True}
OLD = (("backbone.embeddings.", "backbone.embedding."),)
CASES = {
    "mamba": mamba(soak=False),
    "mamba_biased": mamba(
        values={
            "use_bias": True, "use_conv_bias": False, "conv_kernel": 3, "time_step_rank": 7, "expand": 3,
            "tie_word_embeddings": False,
        },
        dtype="BF16",
        shards=2,
    ),
    "mamba_authors": mamba(
        values={"vocab_size": 64, "time_step_rank": 3},
        only={**AUTHORS, "ssm_cfg": {"d_state": 5, "dt_rank": 3}, "residual_in_fp32": True, "fused_add_norm": True},
        renamed=OLD,
    ),
    "mamba2": mamba2(soak=False),
    "mamba2_biased": mamba2(
        values={"use_bias": True, "use_conv_bias": False, "n_groups": 1, "expand": 1, "num_heads": 2, "head_dim": 16,
                "tie_word_embeddings": True, "layer_norm_epsilon": 1e-3}, dtype="F16",
    ),
    # The step of transformers that decodes does not keep to the limits, so there is no reference with the cache.
    "mamba2_limits": mamba2(values={"time_step_limit": (0.3, 1.1)}, generation={"use_cache": False}),
    "mamba2_authors": mamba2(
        values={"vocab_size": 64, "num_hidden_layers": 3, "n_groups": 1, "tie_word_embeddings": True},
        only={
            **AUTHORS, "pad_vocab_size_multiple": 16, "tie_embeddings": True, "attn_layer_idx": [], "d_intermediate": 0,
            "ssm_cfg": {"layer": "Mamba2", "d_state": 6, "headdim": 8, "chunk_size": 4},
        },
        renamed=OLD,
    ),
    "jamba": jamba(
        soak=False,
        values={"num_hidden_layers": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 0},
    ),
    "jamba_four": jamba(shards=3),
    "jamba_dense_first": jamba(
        values={
            "attn_layer_period": 3, "attn_layer_offset": 0, "expert_layer_period": 3, "expert_layer_offset": 2,
            "num_hidden_layers": 5, "num_experts_per_tok": 1, "mamba_proj_bias": True, "mamba_conv_bias": False,
            "tie_word_embeddings": True, "mamba_dt_rank": "auto",
        },
    ),
    "jamba_classes": jamba(
        values={"num_labels": 3, "num_experts": 1}, model="JambaForSequenceClassification",
        loss="sequence", greedy=False,
    ),
}  # fmt: skip
