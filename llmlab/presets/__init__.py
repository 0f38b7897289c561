"""Published systems as values: a function is a model of the published size; a family knows its checkpoints."""

from llmlab.presets import bart, bert, llama, t5, transformer
from llmlab.presets.bart import bart_base, bart_large
from llmlab.presets.bert import (
    bert_base,
    bert_large,
    bert_mini,
    bert_small,
    bert_tiny,
)  # fmt: skip
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
from llmlab.presets.t5 import (
    t5_1_1_base,
    t5_1_1_large,
    t5_1_1_small,
    t5_1_1_xl,
    t5_1_1_xxl,
    t5_3b,
    t5_11b,
    t5_base,
    t5_large,
    t5_small,
)  # fmt: skip
from llmlab.presets.transformer import transformer_base, transformer_big

FAMILIES = (
    llama.FAMILY,
    bert.FAMILY,
    t5.FAMILY,
    bart.FAMILY,
    transformer.FAMILY,
)

__all__ = [
    "ConfigError", "FAMILIES", "Family", "Settings", "bart_base", "bart_large", "bert_base", "bert_large",
    "bert_mini", "bert_small", "bert_tiny", "llama2_70b", "llama2_7b", "llama31_405b", "llama31_70b", "llama31_8b",
    "llama32_1b", "llama32_3b", "llama3_70b", "llama3_8b", "llama_13b", "llama_65b", "llama_7b", "smollm2_135m",
    "t5_11b", "t5_1_1_base", "t5_1_1_large", "t5_1_1_small", "t5_1_1_xl", "t5_1_1_xxl", "t5_3b", "t5_base",
    "t5_large", "t5_small", "transformer_base", "transformer_big",
]  # fmt: skip
