"""Gemma 1 to 3: one head of keys, windows, capped scores and logits, positions of two kinds, configs of the hub."""

from __future__ import annotations

import dataclasses

from .case import Case
from .llama import LLAMA

GEMMA = {**LLAMA, "head_dim": 12, "rms_norm_eps": 1e-6}


def gemma(soak=True, **values) -> Case:
    return Case("GemmaForCausalLM", "GemmaConfig", {**GEMMA, **values}, soak=soak)


def gemma2(soak=True, **values) -> Case:
    values = {**GEMMA, "query_pre_attn_scalar": 20, "sliding_window": 5, **values}
    return Case("Gemma2ForCausalLM", "Gemma2Config", values, soak=soak)


def gemma3(soak=True, **values) -> Case:
    values = {**GEMMA, "query_pre_attn_scalar": 20, "sliding_window": 5, "sliding_window_pattern": 2, **values}
    return Case("Gemma3ForCausalLM", "Gemma3TextConfig", values, soak=soak)


def classes(case: Case, kind: str, family: str) -> Case:
    values = {**case.values, "num_labels": 3, "pad_token_id": 0}
    model = f"{family}For{kind}Classification"
    return dataclasses.replace(case, model=model, values=values, loss=kind.lower(), greedy=False, soak=True)


HUB = {  # of gemma-3-4b, but for the sizes
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "sliding_window_pattern": 2,
}
TWO = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
CASES = {
    "gemma": gemma(soak=False, num_key_value_heads=1),
    "gemma_gelu_biased": dataclasses.replace(
        gemma(attention_bias=True, num_key_value_heads=4), written={"hidden_act": "gelu"}, dtype="BF16", shards=2
    ),
    "gemma_untied": gemma(tie_word_embeddings=False, vocab_size=67, hidden_act="silu"),
    "gemma_classes": classes(gemma(), "Sequence", "Gemma"),
    "gemma_token_classes": classes(gemma(), "Token", "Gemma"),
    "gemma2": gemma2(soak=False),
    "gemma2_low_caps": gemma2(attn_logit_softcapping=0.5, final_logit_softcapping=1.5, num_hidden_layers=4),
    "gemma2_no_caps": gemma2(attn_logit_softcapping=None, final_logit_softcapping=None, attention_bias=True),
    "gemma2_hub": dataclasses.replace(
        gemma2(query_pre_attn_scalar=256),
        unwritten=("layer_types", "rope_parameters", "query_pre_attn_scalar", "attn_logit_softcapping"),
        written={"rope_theta": 1e4, "cache_implementation": "hybrid"},
        strip="model.",
        dtype="BF16",
    ),
    "gemma2_whole_first": gemma2(layer_types=["full_attention", "full_attention", "sliding_attention"]),
    "gemma2_classes": classes(gemma2(), "Sequence", "Gemma2"),
    "gemma2_token_classes": classes(gemma2(), "Token", "Gemma2"),
    "gemma3": gemma3(soak=False),
    "gemma3_hub": dataclasses.replace(
        gemma3(rope_parameters=TWO, num_hidden_layers=5),
        written=HUB,
        unwritten=("rope_parameters", "layer_types"),
        dtype="BF16",
        shards=3,
    ),
    "gemma3_stretched": gemma3(rope_parameters=TWO, final_logit_softcapping=1.5, num_key_value_heads=1),
    "gemma3_scores_uncapped": gemma3(attn_logit_softcapping=0.5, attention_bias=True),
    "gemma3_classes": classes(gemma3(), "Sequence", "Gemma3Text"),
}
