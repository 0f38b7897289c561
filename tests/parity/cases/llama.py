"""LLaMA: heads, biases, tied or not, each stretching of positions, a file as of Llama 3.1, heads for classes."""

from __future__ import annotations

import dataclasses

from .case import Case

LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}


def llama(soak=False, **values) -> Case:
    return Case("LlamaForCausalLM", "LlamaConfig", {**LLAMA, **values}, soak=soak)


def scaled(kind: str, soak=True, **values) -> Case:
    return llama(soak, rope_parameters={"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **values})


def classes(kind: str, soak=True, **values) -> Case:
    """kind: Sequence or Token."""
    values = {**LLAMA, "num_labels": 3, "pad_token_id": 0, **values}
    return Case(f"LlamaFor{kind}Classification", "LlamaConfig", values, loss=kind.lower(), greedy=False, soak=soak)


LEGACY = {
    "rope_theta": 5e5,
    "rope_scaling": {
        "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip
CASES = {
    "llama": llama(tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "llama_multi_query_tied": llama(soak=True, num_key_value_heads=1, tie_word_embeddings=True, head_dim=12),
    "llama_linear": scaled("linear"),
    "llama_yarn": scaled("yarn", original_max_position_embeddings=16),
    "llama_dynamic": scaled("dynamic"),
    "llama_three_legacy": dataclasses.replace(
        llama(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **LEGACY["rope_scaling"]}),
        written=LEGACY,
        unwritten=("rope_parameters", "head_dim"),
        strip="model.",
        dtype="BF16",
        shards=3,
    ),
    "llama_classes": classes("Sequence", soak=False),
    "llama_token_classes": classes("Token"),
    "llama_question": Case("LlamaForQuestionAnswering", "LlamaConfig", LLAMA, loss=None, greedy=False),
}
