"""What a published family of models is: its configs and weights in files, in both directions.

A family reads the `config.json` of a checkpoint as a model, writes it again, and names its tensors. `Settings` reads a
config with errors that name the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from llmlab.config import Config
from llmlab.models.decoder import Model
from llmlab.models.heads import Last, Pooled, Pooling, Tagged, Transform
from llmlab.names import Table
from llmlab.nn.init import Fill, Init

ACTIVATIONS = {  # by the names of the files
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}

MOST = 1 << 24  # of any size in a config


class ConfigError(ValueError):
    """A config.json that says something that cannot be built."""

    exit_code = 65


@dataclasses.dataclass(frozen=True)
class Family:
    """kind: the `model_type` of its configs. read, write: between a config's table and a model; `write` may raise any
    error on a model of another kind. table: names of its tensors, or what gives those of a model.

    prefixes: of names, which a file may have or lack. ignored: patterns of names without weights. renamed: (pattern,
    replacement) for names that older files have. architecture: the class that transformers loads, {head: its name}.
    stems: {head: what its files have for the first prefix}. signs: whether a config without `model_type` is its.
    """

    kind: str
    read: Callable[[Settings], Model]
    write: Callable[[Model], dict]
    table: Table | Callable[[Model], Table]
    architecture: dict[str, str]
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = (r"\.inv_freq$",)
    renamed: tuple[tuple[str, str], ...] = ()
    stems: dict[str, str] = dataclasses.field(default_factory=dict)
    signs: Callable[[dict], bool] = lambda values: False


class Settings:
    """A config.json, read with errors that name the key. tensors: the names of the weights, None where none are."""

    def __init__(self, values: dict, where: str = "config.json", tensors: Collection[str] | None = None):
        self.values, self.where, self.tensors = values, where, tensors

    def get(self, *keys: str, default=None):
        """The value of the first of these keys that is there and not null."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), default)

    def count(self, *keys: str, default: int | None = None) -> int:
        """A whole number from 1 to MOST. Raises ConfigError where there is none."""
        value = self.get(*keys, default=default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST:
            raise ConfigError(f"{self.where}: {keys[0]} is {value!r}; it is a whole number from 1 to {MOST:,}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """Raises ConfigError where the value is none."""
        value = self.get(*keys, default=default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"{self.where}: {keys[0]} is {value!r}; it is a number")
        return float(value)

    def nullable(self, read: Callable, key: str, default):
        """What `read` (`self.count`) finds; None where the config says null, the default where it says nothing."""
        return None if self.values.get(key, default) is None else read(key, default=default)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default=default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} is {value!r}; it is true or false")
        return value

    def activation(self, *keys: str, default: str | None = None) -> str:
        name = self.get(*keys, default=default)
        if name not in ACTIVATIONS:
            raise ConfigError(f"{self.where}: {keys[0]} is {name!r}; known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[name]

    def refuse(self, key: str, *allowed) -> None:
        """Raises ConfigError where `key` is there with a value that is not built here."""
        if key in self.values and self.values[key] not in allowed:
            raise ConfigError(
                f"{self.where}: {key} is {self.values[key]!r}, which is not built; {key} may be "
                + " or ".join(repr(value) for value in allowed)
            )

    def refuse_heads(self, *built: str) -> None:
        """Raises ConfigError where the head of the config, as `head` tells it, is none of these."""
        if self.head() not in built:
            name = self.get("architectures")[0]
            raise ConfigError(f"{self.where}: architectures names {name}, whose head is not built for this family")

    def head(self) -> str:
        """What stands behind the trunk: "lm", "sequence", "token", "question", or "" for nothing."""
        name = (self.get("architectures", default=["ForCausalLM"]) or ["ForCausalLM"])[0]
        kinds = {"SequenceClassification": "sequence", "TokenClassification": "token", "QuestionAnswering": "question"}
        kinds |= {"Model": "", "CausalLM": "lm", "LMHeadModel": "lm", "MaskedLM": "lm", "PreTraining": "lm"}
        kinds |= {"ConditionalGeneration": "lm", "MTModel": "lm"}
        return kinds[max((end for end in kinds if name.endswith(end)), key=len, default="CausalLM")]

    def classes(self) -> int:
        """Classes of a classifier, 2 where the file does not say."""
        return self.count("num_labels", default=len(self.get("id2label", default=()) or (0, 1)))


def headed(settings: Settings, trunk: Model, pooling: Pooling = Last(), bias: Init | None = None, dense=False) -> Model:
    """The trunk under the head that the config names. dense: a transform with tanh stands before the classes."""
    kind = settings.head()
    if kind == "sequence":
        transform = Transform() if dense else None
        return Pooled(trunk=trunk, pooling=pooling, classes=settings.classes(), transform=transform, bias=bias)
    if kind == "token":
        return Tagged(trunk=trunk, classes=settings.classes())
    if kind == "question":
        return Tagged(trunk=trunk, classes=2)
    return trunk


def kind_of(model: Model) -> str:
    """The reverse of `Settings.head`; a model of language is "lm"."""
    if isinstance(model, Pooled):
        return "sequence" if model.classes else ""
    return "token" if isinstance(model, Tagged) else "lm"


def trunk_of(model: Model) -> Model:
    return getattr(model, "trunk", model)


def core_of(model: Model) -> Model:
    """What has the layers, under whatever stands on it."""
    return core_of(model.trunk) if hasattr(model, "trunk") else model


def head_settings(model: Model) -> dict:
    """What a config says of classes."""
    classes = getattr(model, "classes", None)
    if classes is None:
        return {}
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(classes)}} | {
        "label2id": {f"LABEL_{i}": i for i in range(classes)}
    }


def activation_name(activation: str) -> str:
    """The name in files of an activation. Raises ConfigError for one that they do not know."""
    names = {"gelu_tanh": "gelu_pytorch_tanh"} | {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    names["gelu_tanh"] = "gelu_pytorch_tanh"
    if activation not in names:
        raise ConfigError(f"the activation {activation!r} has no name in config.json")
    return names[activation]


LOOSE = {  # what files do not say
    "dropout": 0.0,
    "query_init": None,
    "remat": "none",
    "unroll": 1,
    "multiple": 1,
    "chunk": 0,
}


def plain(cfg, width: int):
    """A model's config without what a checkpoint does not hold: initial values, dropout, layout, repetition.

    Two models that are equal so have the same parameters and compute the same.
    """
    if isinstance(cfg, Init):
        return Fill()
    if isinstance(cfg, tuple):
        return tuple(plain(item, width) for item in cfg)
    if not isinstance(cfg, Config):
        return cfg
    values = {field.name: plain(getattr(cfg, field.name), width) for field in dataclasses.fields(cfg)}
    if "segments" in values:
        values["segments"] = tuple(layer for one in cfg.segments for layer in one.pattern * one.repeats)
        values["segments"] = tuple(plain(layer, width) for layer in values["segments"])
    if "rank" in values and cfg.rank is None:
        values["rank"] = -(-width // 16)  # Mamba's
    if "heads" in values and "kv_heads" in values:
        values["kv_heads"] = cfg.kv_heads or cfg.heads
        values["head_size"] = cfg.head_size or width // cfg.heads
        values["scale"] = cfg.scale if cfg.scale is not None else values["head_size"] ** -0.5
    return (type(cfg).__name__, *((name, LOOSE.get(name, value)) for name, value in values.items()))
