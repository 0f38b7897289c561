"""What configs of encoders and encoder-decoders may not say is refused by name; what begins and ends texts is kept."""

import jax
import numpy as np
import pytest

import llmlab
from llmlab.generate import Beam
from llmlab.interop.checkpoint import write_checkpoint
from llmlab.mesh import Mesh
from llmlab.nn.module import Rngs, split
from llmlab.presets import ConfigError, Settings, bart, bert, t5, transformer, transformer_base
from llmlab.presets.pairs import Common, Half

BERT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 9}
PAIR = {"d_model": 8, "vocab_size": 9} | {
    f"{side}_{key}": size
    for side in ("encoder", "decoder")
    for key, size in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 8))
}
T5 = {"d_model": 8, "vocab_size": 9, "num_layers": 1, "num_heads": 2, "d_ff": 8}


@pytest.mark.parametrize(
    ("family", "values", "message"),
    [
        (bert, {**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        (bert, {**BERT, "is_decoder": True}, "is_decoder is True, which is not built"),
        (bart, {**PAIR, "architectures": ["BartForTokenClassification"]}, "BartForTokenClassification, whose head is"),
        (bart, {**PAIR, "normalize_before": True}, "normalize_before is True"),
        (transformer, {**PAIR, "decoder_vocab_size": 10}, "decoder_vocab_size is not vocab_size"),
        (transformer, {**PAIR, "activation_function": "mish"}, "activation_function is 'mish'; known are gelu"),
        (t5, {**T5, "feed_forward_proj": "double-relu"}, "feed_forward_proj is 'double-relu'; it is an activation"),
        (t5, {**T5, "num_heads": 0}, "num_heads is 0; it is a whole number"),
    ],
)
def test_a_config_that_is_not_built_is_refused(family, values, message):
    with pytest.raises(ConfigError, match=message):
        family.FAMILY.read(Settings(values))


def test_waves_of_the_paper_are_not_those_of_files(tmp_path):
    with pytest.raises(ConfigError, match="layout.* is 'interleaved' and would be 'halves'"):
        write_checkpoint(tmp_path, transformer_base(), {})


def test_texts_begin_and_end_as_the_checkpoint_forces_them(tmp_path):
    half = Half(1, 2, 16)
    model = bart.bart(8, half, half, Common("gelu", bart.INIT), vocab=40, positions=24)
    params = split(model.build(Rngs(params=0)))[1]
    forced = {"forced_bos_token_id": 7, "forced_eos_token_id": 2, "decoder_start_token_id": 2, "eos_token_id": 2}
    write_checkpoint(tmp_path, model, params, settings=forced)
    loaded = llmlab.from_pretrained(tmp_path, mesh=Mesh().build(jax.devices()[:1]))
    sources_BL = np.arange(3, 13).reshape(2, 5)
    greedy_BL = loaded.generate(sources_BL, max_new_tokens=6, stop=())
    assert greedy_BL.shape == (2, 7)
    np.testing.assert_array_equal(greedy_BL[:, [0, 1, -1]], [[2, 7, 2]] * 2)
    np.testing.assert_array_equal(
        loaded.generate(sources_BL, max_new_tokens=6, stop=(), beams=Beam(width=1)), greedy_BL
    )
    with pytest.raises(ValueError, match="a search with beams draws nothing"):
        loaded.generate(sources_BL, temperature=1.0, beams=Beam())
