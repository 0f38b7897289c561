"""Published systems as values: a function is a model of the published size; a family knows its checkpoints."""

from llmlab.presets import (
    bart,
    bert,
    bloom,
    gemma,
    gemma2,
    gemma3,
    gpt_1,
    gpt_2,
    gpt_3,
    jamba,
    llama,
    mamba,
    mamba2,
    mistral,
    mixtral,
    openelm,
    phi3,
    t5,
    transformer,
)  # fmt: skip
from llmlab.presets.bart import bart_base, bart_large
from llmlab.presets.bert import bert_base, bert_large, bert_mini, bert_small, bert_tiny
from llmlab.presets.bloom import bloom_1b1, bloom_1b7, bloom_3b, bloom_7b1, bloom_176b, bloom_560m
from llmlab.presets.family import ConfigError, Family, Settings
from llmlab.presets.gemma import gemma_2b, gemma_7b
from llmlab.presets.gemma2 import gemma2_2b, gemma2_9b, gemma2_27b
from llmlab.presets.gemma3 import gemma3_1b, gemma3_4b, gemma3_12b, gemma3_27b, gemma3_270m
from llmlab.presets.gpt_1 import gpt
from llmlab.presets.gpt_2 import gpt2, gpt2_large, gpt2_medium, gpt2_xl
from llmlab.presets.gpt_3 import (
    gpt3_2b7,
    gpt3_6b7,
    gpt3_13b,
    gpt3_175b,
    gpt3_large,
    gpt3_medium,
    gpt3_small,
    gpt3_xl,
    gpt_neo_1b3,
    gpt_neo_2b7,
    gpt_neo_125m,
)
from llmlab.presets.jamba import jamba_v0_1
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
)
from llmlab.presets.mamba import mamba_1_4b, mamba_2_8b, mamba_130m, mamba_370m, mamba_790m
from llmlab.presets.mamba2 import codestral_mamba_7b, mamba2_1_3b, mamba2_2_7b, mamba2_130m, mamba2_370m, mamba2_780m
from llmlab.presets.mistral import mistral_7b, mistral_7b_v02, mistral_7b_v03
from llmlab.presets.mixtral import mixtral_8x7b, mixtral_8x22b
from llmlab.presets.openelm import openelm_1b1, openelm_3b, openelm_270m, openelm_450m
from llmlab.presets.phi3 import phi3_medium_4k, phi3_medium_128k, phi3_mini_4k, phi3_mini_128k
from llmlab.presets.repcnn import keyword_spotter
from llmlab.presets.seq2seq import rnnencdec, rnnsearch
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

DECODERS = (llama, mistral, mixtral, gemma, gemma2, gemma3, phi3, gpt_1, gpt_2, gpt_3, bloom, openelm)
STATES = (mamba, mamba2, jamba)
FAMILIES = tuple(module.FAMILY for module in (*DECODERS, bert, t5, bart, transformer, *STATES))

__all__ = [
    "ConfigError", "FAMILIES", "Family", "Settings", "bart_base", "bart_large", "bert_base", "bert_large",
    "bert_mini", "bert_small", "bert_tiny", "bloom_176b", "bloom_1b1", "bloom_1b7", "bloom_3b", "bloom_560m",
    "bloom_7b1", "codestral_mamba_7b", "gemma2_27b", "gemma2_2b", "gemma2_9b", "gemma3_12b", "gemma3_1b",
    "gemma3_270m", "gemma3_27b", "gemma3_4b", "gemma_2b", "gemma_7b", "gpt", "gpt2", "gpt2_large", "gpt2_medium",
    "gpt2_xl", "gpt3_13b", "gpt3_175b", "gpt3_2b7", "gpt3_6b7", "gpt3_large", "gpt3_medium", "gpt3_small",
    "gpt3_xl", "gpt_neo_125m", "gpt_neo_1b3", "gpt_neo_2b7", "jamba_v0_1", "keyword_spotter", "llama2_70b",
    "llama2_7b", "llama31_405b", "llama31_70b", "llama31_8b", "llama32_1b", "llama32_3b", "llama3_70b", "llama3_8b",
    "llama_13b", "llama_65b", "llama_7b", "mamba2_130m", "mamba2_1_3b", "mamba2_2_7b", "mamba2_370m", "mamba2_780m",
    "mamba_130m", "mamba_1_4b", "mamba_2_8b", "mamba_370m", "mamba_790m", "mistral_7b", "mistral_7b_v02",
    "mistral_7b_v03", "mixtral_8x22b", "mixtral_8x7b", "openelm_1b1", "openelm_270m", "openelm_3b", "openelm_450m",
    "phi3_medium_128k", "phi3_medium_4k", "phi3_mini_128k", "phi3_mini_4k", "rnnencdec", "rnnsearch",
    "smollm2_135m", "t5_11b", "t5_1_1_base", "t5_1_1_large", "t5_1_1_small", "t5_1_1_xl", "t5_1_1_xxl", "t5_3b",
    "t5_base", "t5_large", "t5_small", "transformer_base", "transformer_big",
]  # fmt: skip
