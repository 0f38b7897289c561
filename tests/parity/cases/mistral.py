"""Mistral and Mixtral: windows shorter than the text, heads of another size, experts, files of each form."""

from __future__ import annotations

import dataclasses

from .case import Case
from .llama import LLAMA


def mistral(soak=True, **values) -> Case:
    return Case("MistralForCausalLM", "MistralConfig", {**LLAMA, **values}, soak=soak)


def mixtral(soak=True, **values) -> Case:
    values = {**LLAMA, "num_local_experts": 5, "num_experts_per_tok": 2, **values}
    return Case("MixtralForCausalLM", "MixtralConfig", values, soak=soak)


def classes(kind: str, family: str = "Mistral") -> Case:
    values = {**LLAMA, "num_labels": 3, "pad_token_id": 0, "sliding_window": 5}
    loss = None if kind == "QuestionAnswering" else kind.removesuffix("Classification").lower()
    return Case(f"{family}For{kind}", f"{family}Config", values, loss=loss, greedy=False, soak=True)


CASES = {
    "mistral_window": mistral(soak=False, sliding_window=5, head_dim=12),
    "mistral_whole_legacy": dataclasses.replace(
        mistral(
            sliding_window=None, num_key_value_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
        ),
        written={"rope_theta": 1e6},
        unwritten=("rope_parameters", "head_dim"),
        dtype="F16",
        shards=2,
    ),
    "mistral_usual_window": dataclasses.replace(
        mistral(rms_norm_eps=1e-6), unwritten=("sliding_window", "rms_norm_eps"), dtype="BF16"
    ),
    "mistral_classes": classes("SequenceClassification"),
    "mistral_token_classes": classes("TokenClassification"),
    "mistral_question": classes("QuestionAnswering"),
    "mixtral": mixtral(soak=False),
    "mixtral_window_tied": mixtral(
        sliding_window=4, tie_word_embeddings=True, num_experts_per_tok=3, hidden_act="gelu"
    ),
    "mixtral_shards": dataclasses.replace(
        mixtral(num_hidden_layers=2), shards=4, dtype="BF16", strip="model.", unwritten=("rope_parameters",)
    ),
    "mixtral_classes": classes("SequenceClassification", "Mixtral"),
}
