"""How GGUF files of an architecture differ from a checkpoint's directory: keys of the config, changes of the weights.

Names of tensors are those of the tables of the `gguf` package, which go from the names of a directory to GGUF's. What
llama.cpp changes when it converts a checkpoint is undone here: LLaMA's queries and keys lie in pairs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from llmlab.interop.gguf import Gguf, Unpack
from llmlab.interop.safetensors import FileError, Stored

EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Undo:
    """A change of the tensors whose name fits, undone by `values`(array, config). shape: the same for a shape."""

    pattern: str
    values: Callable[[np.ndarray, dict], np.ndarray]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape


@dataclasses.dataclass(frozen=True)
class Layout:
    """kind: the `model_type`. keys: {key of a config: key of the metadata}. fixed: what the metadata does not say."""

    kind: str
    keys: dict[str, str]
    fixed: dict[str, object] = dataclasses.field(default_factory=dict)
    undo: tuple[Undo, ...] = ()


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
}
PAIRS = (
    Undo(r"attn_q\.(weight|bias)$", halved("num_attention_heads")),
    Undo(r"attn_k\.(weight|bias)$", halved("num_key_value_heads")),
)
LAYOUTS = {
    "llama": Layout("llama", COMMON, undo=PAIRS),
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
    name = values["general.architecture"]
    table = given.tensors.get("token_embd.weight")
    if table is None:
        raise FileError(f"{given.file} has no token_embd.weight; it holds no whole model")
    found = {
        "model_type": layout.kind,
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in given.tensors,
        "attention_bias": any(one.endswith("attn_q.bias") for one in given.tensors),
        **layout.fixed,
        **{key: values[f"{name}.{own}"] for key, own in layout.keys.items() if f"{name}.{own}" in values},
        **{key: values[f"tokenizer.ggml.{own}_token_id"] for key, own in IDS.items() if _has_id(values, own)},
    }
    if "num_attention_heads" in found:
        found.setdefault("num_key_value_heads", found["num_attention_heads"])
    return found | scaling_of(given, name)


def _has_id(values: dict, own: str) -> bool:
    return f"tokenizer.ggml.{own}_token_id" in values


def scaling_of(given: Gguf, name: str) -> dict:
    """The rope_scaling of a config, from the metadata or from a tensor of factors (Llama 3.1)."""
    get = lambda key: given.values.get(f"{name}.rope.scaling.{key}")
    if "rope_freqs.weight" in given.tensors:
        factors, longest = (
            given.tensors["rope_freqs.weight"].load().tolist(),
            given.values.get(f"{name}.context_length"),
        )
        own = {"short_factor": factors, "long_factor": factors, "attention_factor": 1.0}
        return {"rope_scaling": {"rope_type": "longrope", **own, "original_max_position_embeddings": longest}}
    if get("type") in (None, "none"):
        return {}
    table = {"rope_type": get("type"), "factor": get("factor")}
    table |= {"original_max_position_embeddings": get("original_context_length")}
    return {"rope_scaling": {key: value for key, value in table.items() if value is not None}}


def rename(given: Gguf, wanted: list[str], config: dict) -> dict[str, Stored]:
    """The tensors by the names of a directory, `wanted`, as they would lie there; others keep their names."""
    layout, names = layout_of(given), _tables(given, config["num_hidden_layers"])
    left, found = dict(given.tensors), {}
    for name in wanted:
        expert = EXPERT.search(name)
        own = names.get_name(EXPERT.sub(".experts.", name) if expert else name, (".weight", ".bias"))
        stored = given.tensors.get(own)
        if stored is None:
            continue
        left.pop(own, None)
        if expert:
            stored = _expert(stored, int(expert[1]))
        for undo in layout.undo:
            if re.search(undo.pattern, own):
                stored = _undone(stored, undo, config)
        found[name] = stored
    left.pop("rope_freqs.weight", None)
    return found | left


def _tables(given: Gguf, layers: int):
    import gguf

    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    return gguf.get_tensor_name_map(numbers[given.values["general.architecture"]], layers)


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
