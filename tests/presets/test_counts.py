"""Every preset has exactly the parameters of the published system, counted without making an array."""

import math

import pytest

from llmlab import presets
from llmlab.nn.module import abstract, specs
from tests.presets.test_counts_others import PUBLISHED, UNPUBLISHED

WAVES = {"phi3_mini_128k": 48, "phi3_medium_128k": 64}  # factors that a function is given
COUNTS = {
    "llama_7b": 6_738_415_616,
    "llama_13b": 13_015_864_320,
    "llama_65b": 65_285_660_672,
    "llama2_7b": 6_738_415_616,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "llama31_405b": 405_853_388_800,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "smollm2_135m": 134_515_008,
    "mistral_7b": 7_241_732_096,
    "mistral_7b_v02": 7_241_732_096,
    "mistral_7b_v03": 7_248_023_552,
    "mixtral_8x7b": 46_702_792_704,
    "mixtral_8x22b": 140_620_634_112,
    "gemma_2b": 2_506_172_416,
    "gemma_7b": 8_537_680_896,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
    "gemma3_12b": 11_766_034_176,
    "gemma3_27b": 27_009_346_304,
    "phi3_mini_4k": 3_821_079_552,
    "phi3_mini_128k": 3_821_079_552,
    "phi3_medium_4k": 13_960_238_080,
    "phi3_medium_128k": 13_960_238_080,
    "gpt": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "gpt3_small": 125_226_240,
    "gpt3_medium": 355_871_744,
    "gpt3_large": 760_300_032,
    "gpt3_xl": 1_517_123_584,
    "gpt3_2b7": 2_651_553_280,
    "gpt3_6b7": 6_658_404_352,
    "gpt3_13b": 12_936_488_380,
    "gpt3_175b": 174_604_259_328,
    "gpt_neo_125m": 125_198_592,
    "gpt_neo_1b3": 1_315_575_808,
    "gpt_neo_2b7": 2_651_307_520,
    "bloom_560m": 559_214_592,
    "bloom_1b1": 1_065_314_304,
    "bloom_1b7": 1_722_408_960,
    "bloom_3b": 3_002_557_440,
    "bloom_7b1": 7_069_016_064,
    "bloom_176b": 176_247_271_424,
    "openelm_270m": 271_527_168,
    "openelm_450m": 457_179_136,
    "openelm_1b1": 1_079_891_456,
    "openelm_3b": 3_036_647_424,
}


SLOW = ("openelm_450m", "openelm_1b1", "openelm_3b")  # every layer is another
NAMES = [pytest.param(name, marks=[pytest.mark.soak] if name in SLOW else []) for name in COUNTS]


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    waves = [(1.0,) * WAVES[name]] * 2 if name in WAVES else []
    model = getattr(presets, name)(*waves)
    assert sum(math.prod(spec.unpadded or spec.shape) for spec in specs(abstract(model.build)).values()) == COUNTS[name]


def test_every_preset_is_counted():
    assert COUNTS.keys() | PUBLISHED.keys() | UNPUBLISHED == {name for name in presets.__all__ if name[0].islower()}
