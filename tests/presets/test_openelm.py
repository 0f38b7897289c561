"""OpenELM against its formulas, written once more in plain numpy: transformers has no class of it."""

import json

import jax
import numpy as np
import pytest

import llmlab
from llmlab.interop.safetensors import read_directory, write_directory
from llmlab.mesh import Mesh
from llmlab.presets import openelm_270m
from llmlab.presets.family import ConfigError
from llmlab.presets.gated import layers_of

ONE = Mesh().build(jax.devices()[:1])
WIDTH, SIZE, VOCAB = 24, 8, 37
QUERIES, KEYS, HIDDEN = (2, 4, 4), (1, 2, 1), (12, 32, 48)
CONFIG = {
    "model_type": "openelm",
    "architectures": ["OpenELMForCausalLM"],
    "activation_fn_name": "swish",
    "ffn_dim_divisor": 4,
    "ffn_multipliers": [0.5, 1.33, 2.0],
    "ffn_with_glu": True,
    "head_dim": SIZE,
    "model_dim": WIDTH,
    "normalization_layer_name": "rms_norm",
    "normalize_qk_projections": True,
    "num_gqa_groups": 2,
    "num_kv_heads": list(KEYS),
    "num_query_heads": list(QUERIES),
    "num_transformer_layers": 3,
    "rope_freq_constant": 10_000,
    "share_input_output_layers": True,
    "vocab_size": VOCAB,
}


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    matrix = lambda *shape: (0.3 * random.standard_normal(shape)).astype(np.float32)
    norm = lambda size: 1 + matrix(size)
    found = {"transformer.token_embeddings.weight": matrix(VOCAB, WIDTH), "transformer.norm.weight": norm(WIDTH)}
    for layer, (queries, keys, hidden) in enumerate(zip(QUERIES, KEYS, HIDDEN)):
        found |= {
            f"transformer.layers.{layer}.{name}.weight": value
            for name, value in {
                "attn.qkv_proj": matrix((queries + 2 * keys) * SIZE, WIDTH),
                "attn.q_norm": norm(SIZE),
                "attn.k_norm": norm(SIZE),
                "attn.out_proj": matrix(WIDTH, queries * SIZE),
                "ffn.proj_1": matrix(2 * hidden, WIDTH),
                "ffn.proj_2": matrix(WIDTH, hidden),
                "attn_norm": norm(WIDTH),
                "ffn_norm": norm(WIDTH),
            }.items()
        }
    return found


def formula(found: dict[str, np.ndarray], tokens_L: np.ndarray) -> np.ndarray:
    """logits_LV of one row, in float64."""
    norm = lambda x, w: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w
    length, waves = len(tokens_L), 10_000.0 ** -(np.arange(0, SIZE, 2) / SIZE)
    angles = np.tile(np.arange(length)[:, None] * waves, (1, 2))[:, None]

    def turn(x):
        first, second = np.split(x, 2, axis=-1)
        return x * np.cos(angles) + np.concatenate([-second, first], -1) * np.sin(angles)

    x = found["transformer.token_embeddings.weight"].astype(np.float64)[tokens_L]
    for layer, (queries, keys) in enumerate(zip(QUERIES, KEYS)):
        w = lambda name, layer=layer: found[f"transformer.layers.{layer}.{name}.weight"].astype(np.float64)
        qkv = (norm(x, w("attn_norm")) @ w("attn.qkv_proj").T).reshape(length, -1, SIZE)
        q = turn(norm(qkv[:, :queries], w("attn.q_norm")))
        k = turn(norm(qkv[:, queries : queries + keys], w("attn.k_norm"))).repeat(queries // keys, 1)
        v = qkv[:, queries + keys :].repeat(queries // keys, 1)
        scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(SIZE)
        scores = np.where(np.tril(np.ones((length, length))) > 0, np.exp(scores), 0)
        mixed = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v)
        x = x + mixed.reshape(length, -1) @ w("attn.out_proj").T
        gate, up = np.split(norm(x, w("ffn_norm")) @ w("ffn.proj_1").T, 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w("ffn.proj_2").T
    return norm(x, found["transformer.norm.weight"]) @ found["transformer.token_embeddings.weight"].T


def write(folder, found, config=CONFIG):
    folder.mkdir(exist_ok=True)
    made = [(name, value.shape, lambda value=value: value) for name, value in found.items()]
    write_directory(folder, made, np.dtype(np.float32))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_it_is_its_formulas_and_is_written_as_it_was_read(tmp_path):
    found = tensors()
    model = llmlab.from_pretrained(write(tmp_path / "one", found), mesh=ONE)
    tokens_BL = np.random.default_rng(5).integers(0, VOCAB, (2, 9))
    logits_BLV = np.stack([formula(found, row) for row in tokens_BL])
    np.testing.assert_allclose(model(tokens_BL), logits_BLV, atol=1e-4, rtol=0)
    written = tokens_BL
    for _ in range(6):
        last = np.stack([formula(found, row)[-1].argmax() for row in written])
        written = np.concatenate([written, last[:, None]], axis=1)
    np.testing.assert_array_equal(model.generate(tokens_BL, max_new_tokens=6, stop=()), written)
    llmlab.save_pretrained(model, tmp_path / "two")
    again = read_directory(tmp_path / "two")
    assert set(again) == set(found)
    for name, value in found.items():
        np.testing.assert_array_equal(again[name].load(), value)
    assert llmlab.from_pretrained(tmp_path / "two", mesh=ONE).config == model.config


def test_a_config_with_lists_of_other_lengths_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"have \[3, 2, 3\] entries"):
        llmlab.from_pretrained(write(tmp_path / "one", tensors(), {**CONFIG, "num_kv_heads": [1, 2]}), mesh=ONE)


def test_the_published_sizes_grow_from_layer_to_layer():
    layers = layers_of(openelm_270m())
    assert [layer.mixer.heads for layer in layers] == [12] * 5 + [16] * 7 + [20] * 4
    assert (layers[0].ffn.hidden, layers[-1].ffn.hidden) == (768, 5120)
    assert all(layer.mixer.kv_heads * 4 == layer.mixer.heads for layer in layers)
