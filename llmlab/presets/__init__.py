"""Published systems as values: a function is a model of the published size; a family knows its checkpoints."""

from llmlab.presets import llama
from llmlab.presets.family import ConfigError, Family, Settings
from llmlab.presets.llama import (
    llama2_7b,
    llama2_70b,
    llama3_8b,
    llama3_70b,
    llama31_8b,
    llama31_70b,
    llama31_405b,
    llama32_1b,
    llama32_3b,
    llama_7b,
    llama_13b,
    llama_65b,
    smollm2_135m,
)  # fmt: skip

FAMILIES = (llama.FAMILY,)

__all__ = [
    "ConfigError", "FAMILIES", "Family", "Settings", "llama2_70b", "llama2_7b", "llama31_405b", "llama31_70b",
    "llama31_8b", "llama32_1b", "llama32_3b", "llama3_70b", "llama3_8b", "llama_13b", "llama_65b", "llama_7b",
    "smollm2_135m",
]  # fmt: skip
