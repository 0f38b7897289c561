"""Encoders, pairs, state-space models and the hybrid have as many parameters as transformers counts, tied ones once."""

import pytest

from llmlab import presets
from llmlab.nn.module import abstract, specs
from llmlab.presets.bert import pooled

PUBLISHED = {
    "bert_tiny": 4_385_920,
    "bert_mini": 11_170_560,
    "bert_small": 28_763_648,
    "bert_base": 109_482_240,
    "bert_large": 335_141_888,
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_11b": 11_307_321_344,
    "t5_1_1_small": 76_961_152,
    "t5_1_1_base": 247_577_856,
    "t5_1_1_large": 783_150_080,
    "t5_1_1_xl": 2_849_757_184,
    "t5_1_1_xxl": 11_135_332_352,
    "bart_base": 139_420_416,
    "bart_large": 406_291_456,
    "transformer_base": 63_606_784 - 2 * 512 * 512,  # without two tables of fixed waves
    "transformer_big": 215_293_952 - 2 * 512 * 1024,
    "mamba_130m": 129_135_360,
    "mamba_370m": 371_516_416,
    "mamba_790m": 793_204_224,
    "mamba_1_4b": 1_372_178_432,
    "mamba_2_8b": 2_768_345_600,
    "mamba2_130m": 128_989_632,
    "mamba2_370m": 368_346_624,
    "mamba2_780m": 780_161_280,
    "mamba2_1_3b": 1_343_757_312,
    "mamba2_2_7b": 2_702_599_680,
    "codestral_mamba_7b": 7_285_403_648,
    "jamba_v0_1": 51_570_323_328,
}

UNPUBLISHED = {"keyword_spotter", "rnnencdec", "rnnsearch"}  # tests/presets/test_values_others.py


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_parameters(name):
    model = getattr(presets, name)()
    if name.startswith("bert"):  # what is published is the encoder with its pooler
        model = pooled(model)
    assert sum(spec.size for spec in specs(abstract(model.build)).values()) == PUBLISHED[name]
