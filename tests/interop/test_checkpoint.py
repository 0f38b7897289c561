"""Checkpoint directories: what is wrong is told by tensor and key; sharded loading gives what one device has."""

import json
from functools import partial

import jax
import ml_dtypes
import numpy as np
import pytest

import llmlab
from llmlab.interop.checkpoint import open_checkpoint
from llmlab.interop.safetensors import FileError, read_directory, write_directory
from llmlab.mesh import Mesh
from llmlab.presets.family import ConfigError

ONE, F32 = Mesh().build(jax.devices()[:1]), np.dtype(np.float32)
CONFIG = {
    "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "architectures": ["X"],
    "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
UP = "model.layers.1.mlp.up_proj.weight"
LAYER = {
    "self_attn.q_proj": (16, 16), "self_attn.k_proj": (8, 16), "self_attn.v_proj": (8, 16),
    "self_attn.o_proj": (16, 16), "mlp.gate_proj": (24, 16), "mlp.up_proj": (24, 16), "mlp.down_proj": (16, 24),
    "input_layernorm": (16,), "post_attention_layernorm": (16,),
}  # fmt: skip


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (32, 16), "model.norm.weight": (16,)}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(2) for name, shape in LAYER.items()}
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def save(directory, arrays=None, config=None, dtype=F32):
    arrays = tensors() if arrays is None else arrays
    write_directory(directory, [(name, a.shape, lambda a=a: a) for name, a in arrays.items()], dtype)
    (directory / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return directory


@pytest.fixture
def whole(tmp_path):
    return save(tmp_path)


def changed(name: str, array):
    return {**tensors(), name: array}


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({k: v for k, v in tensors().items() if k != UP}, f"lacks {UP}; it has 19 tensors, such as model.embed_tokens"),
        (
            changed(UP, np.zeros((16, 24), np.float32)),
            rf"model.safetensors: {UP} has the shape \(16, 24\), and the model of config.json has \(24, 16\)",
        ),
        (
            changed(UP, np.full((24, 16), np.nan, np.float32)),
            f"{UP} holds values that are NaN or infinite; the file is",
        ),
        (changed(UP, np.full((24, 16), -np.inf, np.float32)), f"{UP} holds values that are NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(arrays, message, tmp_path):
    save(tmp_path, arrays)
    with pytest.raises(FileError, match=message):
        llmlab.from_pretrained(tmp_path, mesh=ONE)


def test_whole_numbers_are_no_weights(tmp_path):
    save(tmp_path, {name: np.ones_like(a) for name, a in tensors().items()}, dtype=np.dtype(np.int8))
    with pytest.raises(FileError, match="has the type I8; weights are F64, F32, F16 or BF16"):
        llmlab.from_pretrained(tmp_path, mesh=ONE)


def test_further_tensors_are_told(tmp_path):
    save(tmp_path, {**tensors(), "model.layers.0.self_attn.extra": np.zeros(3), "lm_head.weight": np.zeros((32, 16))})
    with pytest.warns(
        UserWarning, match="has tensors that the model has no place for: model.layers.0.self_attn.extra$"
    ):
        llmlab.from_pretrained(tmp_path, mesh=ONE)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "lama"}, "config.json: model_type is 'lama', which is not known here; did you mean 'llama'"),
        ({"model_type": 3}, "model_type is 3, which is not known here; known are"),
        ({"hidden_size": None}, "hidden_size is None; it is a whole number from 1 to 16,777,216"),
        ({"hidden_size": "16"}, "hidden_size is '16'; it is a whole number"),
        ({"num_hidden_layers": 1 << 40}, "num_hidden_layers is 1099511627776; it is a whole number"),
        ({"num_attention_heads": True}, "num_attention_heads is True; it is a whole number"),
        ({"num_attention_heads": 3}, "kv_heads is 2, which does not divide heads = 3"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps is 'tiny'; it is a number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it is true or false"),
        ({"hidden_act": "mish"}, "hidden_act is 'mish'; known are gelu"),
        ({"rope_scaling": [1]}, "is no config of 'llama'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling 'linear' needs 'factor'"),
        ({"architectures": [3]}, "is no config of 'llama'"),
    ],
)
def test_a_config_that_says_no_model_is_refused(changes, message, whole):
    (whole / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(whole)


def test_more_layers_than_tensors_are_not_built(whole):
    (whole / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 1 << 24}))
    with pytest.raises(FileError, match="has 20 tensors, and its config asks for 16777216 layers"):
        open_checkpoint(whole)


def test_places_that_are_no_checkpoint_are_told(whole):
    with pytest.raises(FileNotFoundError, match="there is no checkpoint .*gone; it is a directory with a config.json"):
        open_checkpoint(whole / "gone")
    (whole / "config.json").unlink()
    with pytest.raises(FileError, match="there is no .*config.json"):
        open_checkpoint(whole)


ODD = (None, True, -1, 0, 1.5, "x", [], [1], {}, {"a": 1}, 1 << 70, float("nan"))


def test_chance_values_give_no_other_error(whole):
    random, refused = np.random.default_rng(0), 0
    for _ in range(150):
        config = dict(CONFIG)
        for _ in range(random.integers(1, 3)):
            config[list(CONFIG)[random.integers(1, len(CONFIG))]] = ODD[random.integers(len(ODD))]
        (whole / "config.json").write_text(json.dumps(config))
        try:
            open_checkpoint(whole)
        except (FileError, ConfigError):
            refused += 1
    assert 75 < refused < 150  # some values are right, or of no consequence


def test_ids_of_a_damaged_directory_are_refused(whole):
    model = llmlab.from_pretrained(whole, mesh=ONE)
    (whole / "generation_config.json").write_text("{")
    with pytest.raises(FileError, match="generation_config.json is no JSON"):
        model.generate([[1, 2]], max_new_tokens=1)


def test_a_sharded_load_is_that_of_one_device(tmp_path):
    arrays = tensors()
    made = [(name, a.shape, lambda a=a: a) for name, a in arrays.items()]
    write_directory(tmp_path, made, F32, shard=4096)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert len(list(tmp_path.glob("*.safetensors"))) > 2 and read_directory(tmp_path).keys() == arrays.keys()
    one = llmlab.from_pretrained(tmp_path, mesh=ONE)
    many = llmlab.from_pretrained(tmp_path, mesh=Mesh(fsdp=4, tensor=2))
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
    gate = many.params["stack"]["segments"]["0"]["0"]["ffn"]["gate"]["w"]
    assert len(gate.addressable_shards) == 8 and gate.addressable_shards[0].data.size == gate.size // 8
    tokens = np.arange(16).reshape(2, 8)
    np.testing.assert_allclose(many(tokens), one(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("field", ["dtype", "stored"])
def test_a_type_that_is_not_known_is_told(field, whole):
    with pytest.raises(ValueError, match="no type 'bfloat'; did you mean 'bfloat16'"):
        llmlab.from_pretrained(whole, mesh=ONE, **{field: "bfloat"})


def test_matrices_stay_in_half_precision_where_nothing_is_lost(tmp_path):
    save(tmp_path, dtype=np.dtype(ml_dtypes.bfloat16))
    load = partial(llmlab.from_pretrained, tmp_path, mesh=ONE)
    kept, wide = load(dtype="bfloat16"), load(dtype="bfloat16", stored="float32")
    types = {str(array.dtype) for array in jax.tree.leaves(kept.params)}
    assert types == {"bfloat16", "float32"}  # matrices, and the scales of norms
    assert {str(array.dtype) for array in jax.tree.leaves((wide.params, load(dtype="float32").params))} == {"float32"}
    tokens_BL = np.arange(8)[None]
    np.testing.assert_array_equal(kept(tokens_BL), wide(tokens_BL))
