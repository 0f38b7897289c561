"""Phi-3: fused projections, a window, part of a head turned, searched waves for short and long texts."""

from __future__ import annotations

import dataclasses

from .case import Case
from .llama import LLAMA

WAVES = {"short_factor": [1.0, 1.1, 1.3, 1.7], "long_factor": [1.0, 2.5, 7.0, 20.0]}


def phi3(soak=True, **values) -> Case:
    return Case("Phi3ForCausalLM", "Phi3Config", {**LLAMA, "pad_token_id": 0, **values}, soak=soak)


def searched(original: int, **values) -> Case:
    """original: texts of the test are shorter than 60 and longer than 8."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **WAVES}
    sizes = {"max_position_embeddings": 4 * original, "original_max_position_embeddings": original}
    return phi3(rope_parameters=rope, **sizes, **values)


def legacy(kind: str) -> Case:
    """A config as of the releases of 2024, whose scaling does not name the original length."""
    return dataclasses.replace(
        searched(64),
        written={"rope_theta": 1e4, "rope_scaling": {"type": kind, **WAVES}},
        unwritten=("rope_parameters",),
        dtype="BF16",
    )


CASES = {
    "phi3": phi3(soak=False, sliding_window=6, num_key_value_heads=4),
    "phi3_part": phi3(rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "phi3_short_waves": searched(64),
    "phi3_long_waves": searched(8),
    "phi3_border": searched(20, soak=False),  # crossed while it writes
    "phi3_su": legacy("su"),
    "phi3_longrope_legacy": legacy("longrope"),
    "phi3_shards_tied": dataclasses.replace(
        phi3(tie_word_embeddings=True, num_key_value_heads=1), shards=3, dtype="F16"
    ),
    "phi3_classes": dataclasses.replace(
        phi3(num_labels=3), model="Phi3ForSequenceClassification", loss="sequence", greedy=False
    ),
    "phi3_token_classes": dataclasses.replace(
        phi3(num_labels=3), model="Phi3ForTokenClassification", loss="token", greedy=False
    ),
}
