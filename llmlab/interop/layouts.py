"""How GGUF files of an architecture differ from a checkpoint's directory: keys of the config, changes of the weights.

Names of tensors are those of the tables of the `gguf` package, which go from the names of a directory to GGUF's. What
llama.cpp changes when it converts a checkpoint is undone here: LLaMA's queries and keys lie in pairs, Gemma's norms
have 1 added, GPT-2's matrices are transposed, BLOOM's queries lie before all keys, Mamba's decays are -exp(A_log),
OpenELM's gates lie apart, BERT has no head.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmlab.interop.gguf import Gguf, Unpack
from llmlab.interop.safetensors import FileError, Stored
from llmlab.presets.jamba import write_place

EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Undo:
    """A change of the tensors whose name fits, undone by `values`(array, config). shape: the same for a shape."""

    pattern: str
    values: Callable[[np.ndarray, dict], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape


@dataclasses.dataclass(frozen=True)
class Layout:
    """kind: the `model_type`. keys: {key of a config: key of the metadata} beside the common ones. more: gives further
    keys of the config from those and the file. renamed: (pattern, replacement) of names before they are looked up.
    joined: (pattern, names) of a tensor that lies in parts, by their names in the file.
    """

    kind: str
    keys: dict[str, str] = dataclasses.field(default_factory=dict)
    more: Callable[[dict, Gguf], dict] = lambda config, given: {}
    undo: tuple[Undo, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    joined: tuple[tuple[str, tuple[str, ...]], ...] = ()


def halved(heads: str) -> Callable[[np.ndarray, dict], np.ndarray]:
    """Elements of each head that lie in pairs, in halves. heads: the key of the config that counts them."""

    def values(array: np.ndarray, config: dict) -> np.ndarray:
        return array.reshape(config[heads], -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)

    return values


COMMON = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}
PAIRS = (
    Undo(r"attn_q\.(weight|bias)$", halved("num_attention_heads")),
    Undo(r"attn_k\.(weight|bias)$", halved("num_key_value_heads")),
)


def parted(array: np.ndarray, config: dict) -> np.ndarray:
    """Queries, keys and values of each head together, which lay one after the other."""
    heads = config["num_attention_heads"]
    return array.reshape(3, heads, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)


def experts(config: dict, given: Gguf) -> dict:
    return {"model_type": "mixtral"} if config.get("num_local_experts") else {}


def scores(largest: int) -> Callable[[dict, Gguf], dict]:
    """The scale of scores, which no key says: that of the heads, but in the largest model of so many layers."""

    def more(config: dict, given: Gguf) -> dict:
        whole = config["hidden_size"] // config["num_attention_heads"]
        found = {"query_pre_attn_scalar": whole if config["num_hidden_layers"] == largest else config["head_dim"]}
        return found if config.get("sliding_window") else found | {"sliding_window_pattern": 1}

    return more


def part_turned(config: dict, given: Gguf) -> dict:
    size = config["hidden_size"] / config["num_attention_heads"]
    turned = given.values.get("phi3.rope.dimension_count", size)
    return {"partial_rotary_factor": turned / size, "sliding_window": config.get("sliding_window") or None}


def channels(config: dict, given: Gguf) -> dict:
    """What Mamba's sizes are in a config."""
    inner = given.values[f"{config['model_type']}.ssm.inner_size"]
    if given.values.get("mamba.ssm.dt_b_c_rms"):
        raise FileError(f"{given.file} normalises b, c and the step (Falcon Mamba), which is not built")
    heads = {"head_dim": inner // config["num_heads"]} if "num_heads" in config else {}
    return {"expand": inner / config["hidden_size"], **heads}


def gate(config: dict, given: Gguf) -> dict:
    return {"feed_forward_proj": "gated-gelu" if "enc.blk.0.ffn_gate.weight" in given.tensors else "relu"}


def grown(config: dict, given: Gguf) -> dict:
    """What OpenELM's sizes, of which each layer has its own, are in a config."""
    hidden = given.values["openelm.feed_forward_length"]
    return {
        "ffn_multipliers": [size / config["model_dim"] for size in hidden],
        "ffn_dim_divisor": math.gcd(*hidden),
        "normalize_qk_projections": "blk.0.attn_q_norm.weight" in given.tensors,
    }


def mixed(config: dict, given: Gguf) -> dict:
    """Which of Jamba's layers have attention (keys and values say it), which have experts, and the width of Mamba's."""
    kv = config["num_key_value_heads"]
    routes = [f"blk.{layer}.ffn_gate_inp.weight" in given.tensors for layer in range(len(kv))]
    return {
        "num_key_value_heads": max(kv),
        "mamba_expand": given.values["jamba.ssm.inner_size"] // config["hidden_size"],
        **write_place("attn_layer", [heads > 0 for heads in kv]),
        **(write_place("expert_layer", routes) if any(routes) else {"num_local_experts": 1}),
    }


def vectors(config: dict, given: Gguf) -> dict:
    """The sizes of BERT's tables, and how its states become a vector: without the pooler, which is not in the file."""
    kind = given.values.get("bert.pooling_type", 1)
    if kind not in POOLINGS:
        raise FileError(f"{given.file}: bert.pooling_type is {kind!r}, a head for ranks, which is not built")
    tables = {"max_position_embeddings": "position_embd.weight", "type_vocab_size": "token_types.weight"}
    sizes = {key: given.tensors[own].shape[0] for key, own in tables.items()}
    return {"architectures": ["BertModel"], "pooling": POOLINGS[kind], **sizes}


POOLINGS = {0: "mean", 1: "mean", 2: "first", 3: "last"}  # by bert.pooling_type; 0: none
BERT = {"layer_norm_eps": "attention.layer_norm_epsilon"}
OPENELM = {
    "model_dim": "embedding_length",
    "num_transformer_layers": "block_count",
    "num_query_heads": "attention.head_count",
    "num_kv_heads": "attention.head_count_kv",
    "rope_freq_constant": "rope.freq_base",
    "max_context_length": "context_length",
}
GATES = (r"^transformer\.layers\.(\d+)\.ffn\.proj_1\.weight$", (r"blk.\1.ffn_gate.weight", r"blk.\1.ffn_up.weight"))
JAMBA = {"mamba_d_state": "ssm.state_size", "mamba_d_conv": "ssm.conv_kernel", "mamba_dt_rank": "ssm.time_step_rank"}
GPT2 = {"n_embd": "embedding_length", "n_inner": "feed_forward_length", "n_layer": "block_count"}
GPT2 |= {"n_head": "attention.head_count", "n_positions": "context_length"}
EPS = {"layer_norm_epsilon": "attention.layer_norm_rms_epsilon"}
STATES = {"state_size": "ssm.state_size", "conv_kernel": "ssm.conv_kernel", **EPS}
MAMBA2 = {"num_heads": "ssm.time_step_rank", "n_groups": "ssm.group_count"}
T5 = {
    "d_model": "embedding_length",
    "d_ff": "feed_forward_length",
    "d_kv": "attention.key_length",
    "num_layers": "block_count",
    "num_decoder_layers": "decoder_block_count",
    "num_heads": "attention.head_count",
    "relative_attention_num_buckets": "attention.relative_buckets_count",
    "decoder_start_token_id": "decoder_start_token_id",
    **EPS,
}
TURNED = Undo(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", lambda array, _: array.T, lambda shape: shape[::-1])
ONE_MORE = (Undo(r"norm\.weight$", lambda array, _: array - 1),)
DECAYS = (
    Undo(r"ssm_a$", lambda array, _: np.log(-array)),
    Undo(r"ssm_conv1d\.weight$", lambda array, _: array[:, None], lambda shape: (shape[0], 1, *shape[1:])),
)
FLAT = Undo(r"ssm_(a|d|norm\.weight)$", lambda array, _: array.ravel(), lambda shape: (math.prod(shape),))
LAYOUTS = {
    "llama": Layout("llama", more=experts, undo=PAIRS),
    "gemma": Layout("gemma", undo=ONE_MORE),
    "gemma2": Layout("gemma2", more=scores(46), undo=ONE_MORE),
    "gemma3": Layout("gemma3_text", {"rope_local_base_freq": "rope.freq_base_swa"}, scores(62), ONE_MORE),
    "phi3": Layout("phi3", more=part_turned),
    "gpt2": Layout("gpt2", GPT2, undo=(TURNED,)),
    "bloom": Layout("bloom", undo=(Undo(r"attn_qkv\.", parted),), renamed=((r"^transformer\.", ""),)),
    "mamba": Layout("mamba", STATES | {"time_step_rank": "ssm.time_step_rank"}, channels, DECAYS),
    "mamba2": Layout("mamba2", STATES | MAMBA2, channels, (*DECAYS, FLAT), ((r"dt_bias$", "dt_proj.bias"),)),
    "t5": Layout("t5", T5, gate),
    "bert": Layout("bert", BERT, vectors, renamed=((r"^bert\.", ""),)),
    "openelm": Layout("openelm", OPENELM, grown, joined=(GATES,)),
    "jamba": Layout("jamba", JAMBA, mixed, DECAYS, ((r"\.feed_forward\.experts\.", ".mlp.experts."),)),
}
IDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding", "unk_token_id": "unknown"}


def layout_of(given: Gguf) -> Layout:
    """The layout of a file. Raises FileError for an architecture that is not known here."""
    name = given.values.get("general.architecture")
    if name not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise FileError(
            f"{given.file}: general.architecture is {name!r}, which is not read from GGUF; known are {known}"
        )
    return LAYOUTS[name]


def config_of(given: Gguf) -> dict:
    """The table of config.json that says what the metadata says. Raises FileError where a key is not there."""
    layout, values = layout_of(given), given.values
    name, keys = values["general.architecture"], COMMON | layout.keys
    table = given.tensors.get("token_embd.weight")
    if table is None:
        raise FileError(f"{given.file} has no token_embd.weight; it holds no whole model")
    found = {
        "model_type": layout.kind,
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in given.tensors,
        "attention_bias": any(one.endswith("attn_q.bias") for one in given.tensors),
        **{key: values[f"{name}.{own}"] for key, own in keys.items() if f"{name}.{own}" in values},
        **{key: values[f"tokenizer.ggml.{own}_token_id"] for key, own in IDS.items() if _has_id(values, own)},
    }
    if "num_attention_heads" in found:
        found.setdefault("num_key_value_heads", found["num_attention_heads"])
    try:
        return found | layout.more(found, given) | scaling_of(given, name)
    except FileError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise FileError(f"{given.file}: its metadata does not say what {name!r} is: {error!r}") from error


def _has_id(values: dict, own: str) -> bool:
    return f"tokenizer.ggml.{own}_token_id" in values


def scaling_of(given: Gguf, name: str) -> dict:
    """The rope_scaling of a config, from the metadata or from tensors of factors (Llama 3.1's one, Phi-3's two)."""
    get = lambda key: given.values.get(f"{name}.rope.scaling.{key}")
    factors = {end: f"rope_{end}.weight" for end in ("freqs", "factors_short", "factors_long")}
    factors = {end: given.tensors[own].load().tolist() for end, own in factors.items() if own in given.tensors}
    if factors:
        whole, longest = factors.get("freqs"), given.values.get(f"{name}.context_length")
        own = {"short_factor": whole or factors["factors_short"], "long_factor": whole or factors["factors_long"]}
        own |= {"original_max_position_embeddings": longest if whole else get("original_context_length")}
        return {
            "rope_scaling": {"rope_type": "longrope", "attention_factor": 1.0 if whole else get("attn_factor"), **own}
        }
    if get("type") in (None, "none"):
        return {}
    table = {"rope_type": get("type"), "factor": get("factor")}
    table |= {"original_max_position_embeddings": get("original_context_length")}
    return {"rope_scaling": {key: value for key, value in table.items() if value is not None}}


def rename(given: Gguf, wanted: list[str], config: dict) -> dict[str, Stored]:
    """The tensors by the names of a directory, `wanted`, as they would lie there; others keep their names."""
    layout, names = layout_of(given), _tables(given)
    left, found = dict(given.tensors), {}
    for name in wanted:
        expert, owns = EXPERT.search(name), _names(name, layout, names)
        if not all(own in given.tensors for own in owns):
            continue
        parts = []
        for own in owns:
            left.pop(own, None)
            stored = given.tensors[own]
            if expert:
                stored = _expert(stored, int(expert[1]))
            for undo in layout.undo:
                if re.search(undo.pattern, own):
                    stored = _undone(stored, undo, config)
            parts.append(stored)
        found[name] = parts[0] if len(parts) == 1 else _joined(parts, owns)
    return found | {name: stored for name, stored in left.items() if not name.startswith("rope_f")}


def _names(name: str, layout: Layout, names) -> list[str | None]:
    """The tensors of the file that hold a tensor of a directory: one, or its parts."""
    for pattern, parts in layout.joined:
        if re.search(pattern, name):
            return [re.sub(pattern, part, name) for part in parts]
    known = EXPERT.sub(".experts.", name)
    for pattern, replacement in layout.renamed:
        known = re.sub(pattern, replacement, known)
    return [names.get_name(known, (".weight", ".bias"))]


def _joined(parts: list[Stored], names: list[str]) -> Stored:
    """Parts of one shape as one tensor, the rows of one after those of the other."""
    first, shapes = parts[0], [part.shape for part in parts]
    if len(set(shapes)) > 1:
        raise FileError(f"{first.file}: {' and '.join(names)} have the shapes {shapes}; they are equal")
    whole = lambda: np.concatenate([part.load() for part in parts])
    return dataclasses.replace(first, shape=(len(parts) * first.shape[0], *first.shape[1:]), load=whole)


def _tables(given: Gguf):
    import gguf

    name = given.values["general.architecture"]
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = [given.values.get(f"{name}.{key}", 0) for key in ("block_count", "decoder_block_count")]
    return gguf.get_tensor_name_map(numbers[name], max(layers))


def _expert(stored: Stored, number: int) -> Stored:
    """One expert of a tensor that holds all of them."""
    read, kind = stored.load.read, stored.load.kind
    if len(stored.shape) < 2 or number >= stored.shape[0]:
        raise FileError(f"{stored.file}: a tensor of shape {stored.shape} is to hold the weights of expert {number}")
    each = int(np.prod(read.shape[1:]))
    part = dataclasses.replace(read, offset=read.offset + number * each, shape=read.shape[1:])
    return dataclasses.replace(stored, shape=stored.shape[1:], load=Unpack(part, kind))


def _undone(stored: Stored, undo: Undo, config: dict) -> Stored:
    load = stored.load
    return dataclasses.replace(stored, shape=undo.shape(stored.shape), load=lambda: undo.values(load(), config))


def find_gguf(place: Path) -> Path | None:
    """The GGUF file of a place: itself, or the only one of a directory without config.json; None where it has none."""
    if place.is_file():
        return place
    if (place / "config.json").exists():
        return None
    files = sorted(place.glob("*.gguf")) if place.is_dir() else []
    if len(files) > 1:
        raise FileError(f"{place} has {len(files)} GGUF files ({', '.join(f.name for f in files)}); name one of them")
    return files[0] if files else None
