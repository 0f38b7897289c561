"""What configs say and what is refused: errors name the key; a model that no family has is not written."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from llmlab.config import put
from llmlab.interop.checkpoint import fit, open_checkpoint
from llmlab.interop.safetensors import write_directory
from llmlab.nn import Alibi
from llmlab.nn.module import Rngs
from llmlab.presets import (
    ConfigError,
    Settings,
    bloom,
    gemma2,
    gemma3,
    gpt3_small,
    gpt_1,
    gpt_2,
    gpt_3,
    mistral_7b,
    mixtral_8x7b,
    openelm,
    smollm2_135m,
)  # fmt: skip
from llmlab.presets.gated import layers_of

GEMMA = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4}


def settings(name: str, **values) -> Settings:
    return Settings({"architectures": [name], **values})


def test_the_head_is_that_of_the_class():
    kinds = {
        "GPT2LMHeadModel": "lm", "OpenAIGPTLMHeadModel": "lm", "LlamaForCausalLM": "lm", "BertForMaskedLM": "lm",
        "GPT2Model": "", "MarianMTModel": "lm", "Gemma3TextForSequenceClassification": "sequence",
        "MistralForTokenClassification": "token", "BloomForQuestionAnswering": "question",
    }  # fmt: skip
    assert {name: settings(name).head() for name in kinds} == kinds
    assert Settings({}).head() == "lm"


def test_null_is_none_and_nothing_is_the_default():
    one = Settings({"a": None, "b": 3, "c": "four"})
    assert [one.nullable(one.count, key, 7) for key in ("a", "b", "d")] == [None, 3, 7]
    with pytest.raises(ConfigError, match="c is 'four'; it is a whole number"):
        one.nullable(one.count, "c", 7)


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        (gemma2, {**GEMMA, "layer_types": ["full_attention"] * 2}, "for 3 layers"),
        (gemma3, {**GEMMA, "layer_types": ["whole"] * 3}, "layer_types is"),
        (gemma3, {**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (gpt_1, {"vocab_size": 61, "afn": "tanh"}, "afn is 'tanh'; known are gelu, relu"),
        (gpt_2, {"vocab_size": 61, "add_cross_attention": True}, "add_cross_attention is True"),
        (gpt_3, {"vocab_size": 61, "num_layers": 4, "attention_types": [[["global"], 3]]}, "for 4 layers"),
        (gpt_3, {"vocab_size": 61, "num_layers": 4, "attention_types": [3]}, "attention_types is"),
        (bloom, {"vocab_size": 61, "n_head": 0}, "n_head is 0"),
        (openelm, {"num_transformer_layers": 2, "model_dim": 8, "ffn_with_glu": False}, "ffn_with_glu is False"),
    ],
)
def test_what_is_refused(family, values, message):
    with pytest.raises(ConfigError, match=message):
        family.FAMILY.read(Settings(values))


def test_a_model_is_written_by_the_first_family_that_has_it():
    assert fit(smollm2_135m())[0].kind == "llama"
    assert fit(mistral_7b())[0].kind == "mistral"
    assert fit(mixtral_8x7b())[0].kind == "mixtral"
    family, written = fit(put(smollm2_135m(), "stack.segments.0.repeats", 2))
    assert family.kind == "llama" and written["num_hidden_layers"] == 2


def test_bands_with_scaled_scores_are_in_no_published_family():
    with pytest.raises(ConfigError, match="gpt2: .*window"):
        fit(gpt3_small())


def test_inverse_layers_scale_scores_and_come_back():
    config = {"vocab_size": 61, "n_embd": 32, "n_layer": 3, "n_head": 2, "scale_attn_by_inverse_layer_idx": True}
    model = gpt_2.read(Settings(config))
    assert [layer.mixer.scale for layer in layers_of(model)] == [0.25, 0.125, 0.25 / 3]
    assert fit(model)[1]["scale_attn_by_inverse_layer_idx"] is True


def test_layers_alternate_and_windows_are_those_of_the_config():
    layers = layers_of(gemma3.read(Settings({**GEMMA, "sliding_window": 5, "sliding_window_pattern": 2})))
    assert [layer.mixer.view.window for layer in layers] == [5, None, 5]
    assert [layer.mixer.position.theta for layer in layers] == [1e4, 1e6, 1e4]
    layers = layers_of(gemma2.read(Settings({**GEMMA, "num_hidden_layers": 4})))
    assert [layer.mixer.view.window for layer in layers] == [4096, None, 4096, None]
    neo = gpt_3.read(Settings({"vocab_size": 61, "hidden_size": 32, "num_layers": 4, "num_heads": 2}))
    assert [layer.mixer.view.window for layer in layers_of(neo)] == [None, 256, None, 256]


def test_bloom_puts_its_positions_into_the_scores():
    model = bloom.read(Settings({"vocab_size": 61, "n_embed": 32, "n_layer": 2, "num_attention_heads": 4}))
    assert model.stack.bias == Alibi(heads=4) and layers_of(model)[0].mixer.position is None
    small = dataclasses.replace(model, vocab=7)
    embedded_BLD = small.build(Rngs(params=0)).embed.norm(jnp.arange(32.0)[None, None])
    assert abs(float(embedded_BLD.mean())) < 1e-5


def test_a_head_that_is_not_built_is_named(tmp_path):
    config = {"model_type": "gemma", "architectures": ["GemmaForQuestionAnswering"], **GEMMA}
    (tmp_path / "config.json").write_text(json.dumps(config))
    one = (("lm_head.weight", (2, 2), lambda: np.ones((2, 2))),)
    write_directory(tmp_path, list(one), np.dtype(np.float32))
    with pytest.raises(ConfigError, match="GemmaForQuestionAnswering, whose head is not built"):
        open_checkpoint(tmp_path)
