"""Encoders and encoder-decoders have the published numbers of parameters, counted as transformers counts them."""

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
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_parameters(name):
    model = getattr(presets, name)()
    if name.startswith("bert"):  # what is published is the encoder with its pooler
        model = pooled(model)
    assert sum(spec.size for spec in specs(abstract(model.build)).values()) == PUBLISHED[name]
