"""GGUF files of each family give what their directory gives; they are written here as llama.cpp's converter does it.

The directories are those of tests/parity; what the converter changes and says is in conversion/*.py of llama.cpp.
"""

import itertools
import json
import re
import warnings

import gguf
import jax
import numpy as np
import pytest

import llmlab
from llmlab.interop.checkpoint import open_checkpoint
from llmlab.interop.gguf import read_gguf
from llmlab.interop.layouts import config_of, rename
from llmlab.interop.safetensors import FileError, read_directory, write_directory
from llmlab.mesh import Mesh
from llmlab.models.heads import First, Last, Mean
from tests.parity.test_parity import DATA, write
from tests.presets import test_openelm as openelm_files

ONE = Mesh().build(jax.devices()[:1])
COMMON = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
HEAD, WINDOW = {"head_dim": "attention.key_length"}, {"sliding_window": "attention.sliding_window"}
GPT = {"n_embd": "embedding_length", "n_layer": "block_count", "n_head": "attention.head_count",
       "n_positions": "context_length", "layer_norm_epsilon": "attention.layer_norm_epsilon"}  # fmt: skip
BLOOM = {"hidden_size": "embedding_length", "n_layer": "block_count", "n_head": "attention.head_count",
         "layer_norm_epsilon": "attention.layer_norm_epsilon"}  # fmt: skip
STATES = {"hidden_size": "embedding_length", "num_hidden_layers": "block_count", "state_size": "ssm.state_size",
          "conv_kernel": "ssm.conv_kernel", "layer_norm_epsilon": "attention.layer_norm_rms_epsilon"}  # fmt: skip
T5 = {"d_model": "embedding_length", "d_ff": "feed_forward_length", "num_layers": "block_count",
      "num_decoder_layers": "decoder_block_count", "num_heads": "attention.head_count", "d_kv": "attention.key_length",
      "relative_attention_num_buckets": "attention.relative_buckets_count",
      "layer_norm_epsilon": "attention.layer_norm_rms_epsilon",
      "decoder_start_token_id": "decoder_start_token_id"}  # fmt: skip

BERT = COMMON | {"layer_norm_eps": "attention.layer_norm_epsilon"}
OPENELM = {"model_dim": "embedding_length", "num_transformer_layers": "block_count", "head_dim": "attention.key_length",
           "num_query_heads": "attention.head_count", "num_kv_heads": "attention.head_count_kv"}  # fmt: skip
JAMBA = COMMON | {"num_experts": "expert_count", "num_experts_per_tok": "expert_used_count",
                  "mamba_d_state": "ssm.state_size", "mamba_d_conv": "ssm.conv_kernel",
                  "mamba_dt_rank": "ssm.time_step_rank"}  # fmt: skip


def rope(config: dict, kind: str = "full_attention") -> dict:
    table = config["rope_parameters"]
    return table.get(kind, table)


def llama(config):
    experts = {"expert_count": config["num_local_experts"], "expert_used_count": config["num_experts_per_tok"]}
    return {"rope.freq_base": rope(config)["rope_theta"], **experts}


def gemma2(config):
    caps = ("attn_logit_softcapping", "final_logit_softcapping")
    return {cap: config[cap] for cap in caps}


def gemma3(config):
    near = rope(config, "sliding_attention")["rope_theta"]
    cap = {"final_logit_softcapping": config["final_logit_softcapping"]}
    return {"rope.freq_base": rope(config)["rope_theta"], "rope.freq_base_swa": near, **cap}


def phi3(config):
    told, size = rope(config), config["hidden_size"] // config["num_attention_heads"]
    found = {"rope.freq_base": told["rope_theta"], "attention.sliding_window": config["sliding_window"] or 0}
    found["rope.dimension_count"] = int(told.get("partial_rotary_factor", 1.0) * size)
    if told["rope_type"] == "longrope":
        original = config["original_max_position_embeddings"]
        scale = config["max_position_embeddings"] / original
        found["rope.scaling.original_context_length"] = original
        found["rope.scaling.attn_factor"] = (1 + np.log(scale) / np.log(original)) ** 0.5
    return found


def gpt2(config):
    return {"feed_forward_length": 4 * config["n_embd"]}


def nothing(config):
    return {}


def states(config):
    inner = 2 * config["hidden_size"]
    rank = inner // config["head_dim"] if "head_dim" in config else config["time_step_rank"]
    groups = {"ssm.group_count": config["n_groups"]} if "n_groups" in config else {"ssm.dt_b_c_rms": False}
    return {"ssm.inner_size": inner, "ssm.time_step_rank": rank, "context_length": 1 << 20, **groups}


def openelm(config):
    hidden = list(openelm_files.HIDDEN)
    return {"feed_forward_length": hidden, "rope.freq_base": float(config["rope_freq_constant"]), "context_length": 64,
            "rope.dimension_count": config["head_dim"], "attention.layer_norm_rms_epsilon": 1e-6}  # fmt: skip


def jamba(config):
    period, offset = config["attn_layer_period"], config["attn_layer_offset"]
    attends = [layer % period == offset for layer in range(config["num_hidden_layers"])]
    kv = [config["num_key_value_heads"] * one for one in attends]
    return {"attention.head_count_kv": kv, "ssm.inner_size": 2 * config["hidden_size"]}


CASES = {  # name of a case of parity: (architecture, keys that are copied, others)
    "mixtral": ("llama", COMMON, llama),
    "gemma": ("gemma", COMMON | HEAD, nothing),
    "gemma2_low_caps": ("gemma2", COMMON | HEAD | WINDOW, gemma2),
    "gemma3_stretched": ("gemma3", COMMON | HEAD | WINDOW, gemma3),
    "phi3": ("phi3", COMMON, phi3),
    "phi3_part": ("phi3", COMMON, phi3),
    "phi3_long_waves": ("phi3", COMMON, phi3),
    "gpt2": ("gpt2", GPT, gpt2),
    "bloom": ("bloom", BLOOM, nothing),
    "mamba": ("mamba", STATES, states),
    "mamba2": ("mamba2", STATES, states),
    "t5": ("t5", T5, nothing),
    "t5_gated": ("t5", T5, nothing),
    "bert_pooled": ("bert", BERT, nothing),
    "openelm": ("openelm", OPENELM, openelm),
    "jamba": ("jamba", JAMBA, jamba),
    "jamba_four": ("jamba", JAMBA, jamba),
}
UNSAID = {  # what a file cannot say is what llama.cpp takes for it
    "gemma2": {"query_pre_attn_scalar": 12},
    "gemma3": {"query_pre_attn_scalar": 12, "num_hidden_layers": 7, "layer_types": None, "sliding_window_pattern": 6},
    "t5": {"relative_attention_max_distance": 128},
}


def directory(folder, name: str, arch: str):
    """The directory of a case of parity, with a config that GGUF can say; deeper where the config is."""
    if name == "openelm":  # transformers has none
        return openelm_files.write(folder, openelm_files.tensors()), openelm_files.CONFIG
    reference = np.load(DATA / f"{name}.npz")
    config, shapes = json.loads(str(reference["config"])) | UNSAID.get(arch, {}), json.loads(str(reference["shapes"]))
    first = {key: shape for key, shape in shapes.items() if ".layers.0." in key}
    for layer in range(UNSAID.get(arch, {}).get("num_hidden_layers", 0)):
        shapes |= {key.replace(".0.", f".{layer}."): shape for key, shape in first.items()}
    folder.mkdir()
    return write(folder, name, {"config": json.dumps(config), "shapes": json.dumps(shapes)}), config


def converted(name: str, array: np.ndarray, arch: str, config: dict) -> dict[str, np.ndarray]:
    """A tensor as the converter names and changes it before it looks its name up, or what it writes in its place."""
    end = name.split(".", 3)[-1]
    if arch == "llama" and re.search(r"[qk]_proj\.(weight|bias)$", name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        array = array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
    elif arch.startswith("gemma") and name.endswith("norm.weight"):
        array = array + 1
    elif arch == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        array = array.T
    elif arch == "bloom":
        name = name.removeprefix("transformer.")
        if "query_key_value" in name:
            array = array.reshape(config["n_head"], 3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)
    elif arch == "bert" and name.startswith("pooler."):
        return {}
    elif arch == "openelm" and end == "ffn.proj_1.weight":
        layer = name.split(".")[2]
        return {f"blk.{layer}.ffn_{part}.weight": half for part, half in zip(("gate", "up"), np.split(array, 2))}
    elif arch.startswith("mamba") or arch == "jamba":
        name = name.replace("feed_forward.experts.", "mlp.experts.")
        array = -np.exp(array) if end.endswith("A_log") else array.squeeze() if "conv1d.weight" in end else array
        if arch == "mamba2":
            name = name.replace("mixer.dt_bias", "mixer.dt_proj.bias")
            array = array[:, None] if end in ("mixer.A_log", "mixer.D") else array
            array = array.reshape(config["n_groups"], -1) if end == "mixer.norm.weight" else array
    return {name: np.ascontiguousarray(array)}


def merged(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Matrices of experts in one tensor."""
    found = {}
    for name, array in tensors.items():
        found.setdefault(re.sub(r"experts\.\d+\.", "experts.", name), []).append(array)
    return {name: np.stack(arrays) if ".experts." in name else arrays[0] for name, arrays in found.items()}


def write_gguf(file, folder, arch: str, config: dict, numbers: dict, kind: gguf.GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(file, arch)
    for key, value in numbers.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}
        add = add.get(type(value), writer.add_float32)
        add(f"{arch}.{key}", value)
    told = config.get("rope_parameters", {})
    told = told.get("full_attention", told)
    if told.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(told["factor"])
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    table = gguf.get_tensor_name_map(number, 8)
    tensors = [converted(name, one.load(), arch, config).items() for name, one in read_directory(folder).items()]
    tensors = merged(dict(itertools.chain.from_iterable(tensors)))
    tensors = {table.get_name(name, (".weight", ".bias")) or name: array for name, array in tensors.items()}
    tensors |= {f"rope_factors_{end}.weight": np.float32(told[f"{end}_factor"])
                for end in ("long", "short") if told.get("rope_type") == "longrope"}  # fmt: skip
    for name, array in tensors.items():
        own = kind if array.ndim == 2 and array.shape[-1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name, kind", [*((name, "F32") for name in CASES), ("gemma", "Q8_0")])
def test_a_file_gives_what_its_directory_gives(name, kind, tmp_path):
    arch, copied, more = CASES[name]
    kind = gguf.GGMLQuantizationType[kind]
    folder, config = directory(tmp_path / "hf", name, arch)
    if kind != gguf.GGMLQuantizationType.F32:
        tensors = read_directory(folder).items()
        rounded = {key: gguf.dequantize(gguf.quantize(one.load(), kind), kind) for key, one in tensors
                   if len(one.shape) == 2 and one.shape[-1] % 32 == 0}  # fmt: skip
        whole = {key: rounded.get(key, one.load().copy()) for key, one in tensors}
        made = [(key, array.shape, lambda array=array: array) for key, array in whole.items()]
        write_directory(folder, made, np.dtype(np.float32))
    numbers = {own: config[key] for key, own in copied.items() if config.get(key) is not None} | more(config)
    write_gguf(tmp_path / "a.gguf", folder, arch, config, numbers, kind)
    with warnings.catch_warnings(action="error", category=UserWarning):  # every tensor has its place
        found = llmlab.from_pretrained(tmp_path / "a.gguf", mesh=ONE)
    found, wanted = (computed(model, arch) for model in (found, llmlab.from_pretrained(folder, mesh=ONE)))
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)


def computed(model, arch: str):
    """Logits, or the last hidden states where the file has no head."""
    ids = np.arange(3, 27).reshape(2, 12)
    if arch == "bert":
        return model(ids, token_types=ids % 3, hidden_states=True)[1][-1]
    return model(ids, ids[:, :5]) if arch == "t5" else model(ids)


@pytest.mark.parametrize("number, pooling", [(None, Mean()), (2, First()), (3, Last())])
def test_vectors_of_bert_are_pooled_as_the_file_says(number, pooling, tmp_path):
    folder, config = directory(tmp_path / "hf", "bert_pooled", "bert")
    numbers = {own: config[key] for key, own in BERT.items() if config.get(key) is not None}
    numbers |= {} if number is None else {"pooling_type": number}
    write_gguf(tmp_path / "a.gguf", folder, "bert", config, numbers, gguf.GGMLQuantizationType.F32)
    model, ids = llmlab.from_pretrained(tmp_path / "a.gguf", mesh=ONE), np.arange(3, 15).reshape(2, 6)
    states_BLD = np.asarray(model.hidden(ids))
    assert model.config.pooling == pooling
    np.testing.assert_allclose(model(ids), pooling(states_BLD, np.ones((2, 6), bool)), atol=1e-6)
    llmlab.save_pretrained(model, tmp_path / "saved")
    again = llmlab.from_pretrained(tmp_path / "saved", mesh=ONE)
    assert again.config == model.config
    np.testing.assert_array_equal(again(ids), model(ids))
    numbers["pooling_type"] = 4
    write_gguf(tmp_path / "a.gguf", folder, "bert", config, numbers, gguf.GGMLQuantizationType.F32)
    with pytest.raises(FileError, match="bert.pooling_type is 4, a head for ranks, which is not built"):
        open_checkpoint(tmp_path / "a.gguf")


def test_halves_of_another_shape_are_refused(tmp_path):
    folder, config = directory(tmp_path / "hf", "openelm", "openelm")
    numbers = {own: config[key] for key, own in OPENELM.items()} | openelm(config)
    write_gguf(tmp_path / "a.gguf", folder, "openelm", config, numbers, gguf.GGMLQuantizationType.F32)
    given = read_gguf(tmp_path / "a.gguf")
    given.tensors["blk.1.ffn_up.weight"] = given.tensors["blk.0.ffn_up.weight"]
    with pytest.raises(FileError, match=r"blk.1.ffn_up.weight have the shapes \[\(32, 24\), \(12, 24\)"):
        rename(given, ["transformer.layers.1.ffn.proj_1.weight"], config_of(given))
    given.values["openelm.feed_forward_length"] = 12
    with pytest.raises(FileError, match="its metadata does not say what 'openelm' is: TypeError"):
        config_of(given)


def test_falcon_mamba_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.add_bool("mamba.ssm.dt_b_c_rms", True)
    writer.add_uint32("mamba.ssm.inner_size", 8)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FileError, match=r"normalises b, c and the step \(Falcon Mamba\), which is not built"):
        open_checkpoint(tmp_path / "a.gguf")
