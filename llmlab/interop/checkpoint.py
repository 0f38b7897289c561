"""A checkpoint directory of another tool as a model of llmlab, and back.

    config.json                 what the model is; its family is found by `model_type`
    model.safetensors           its weights, or several files with an index

A GGUF file is such a directory in one file. `open_checkpoint` finds out what there is, without reading weights;
`Checkpoint.params` reads them.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import shutil
import tempfile
import weakref
from pathlib import Path

import jax
import numpy as np

from llmlab import axes
from llmlab.axes import Rules
from llmlab.config import Config, did_you_mean, swap
from llmlab.interop import weights
from llmlab.interop.gguf import read_gguf
from llmlab.interop.layouts import find_gguf, rename
from llmlab.interop.safetensors import SHARD, FileError, Stored, parse_json, read_directory, write_directory
from llmlab.interop.unpack import unpack
from llmlab.models.decoder import Model
from llmlab.names import Bound, bind
from llmlab.nn.init import Fill, Init
from llmlab.nn.module import Module, abstract, specs
from llmlab.optim.optimizers import nest
from llmlab.presets import FAMILIES
from llmlab.presets.family import ConfigError, Family, Settings, core_of, kind_of, plain, trunk_of


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: its family, the table of its config.json, the model, and its tensors by name.

    source: what it was opened from. directory: where its small files lie; of a GGUF file that is a copy, which is there
    as long as this object.
    """

    source: Path
    directory: Path
    family: Family
    settings: dict
    model: Model
    stored: dict[str, Stored]

    @property
    def head(self) -> str:
        """The kind of its head, as `Settings.head` tells it."""
        return Settings(self.settings).head()

    def params(
        self,
        mesh: jax.sharding.Mesh,
        rules: Rules,
        dtype: str = "float32",
        matrices: str | None = None,
        model: Model | None = None,
    ) -> dict:
        """The parameters, read tensor by tensor onto the mesh.

        dtype, matrices: see `weights.read`. model: one with the same parameters (other dropout or layout) to read them
        for; that of the config by default.
        Raises FileError for a missing or damaged tensor and for one of another shape.
        """
        table, bound = names_of(self.family, model or self.model, self.head)
        shardings = {path: axes.stored(spec.axes, spec.shape, mesh, rules) for path, spec in table.items()}
        stored = {_renamed(name, self.family): one for name, one in self.stored.items()}
        ignored = self.family.ignored
        if not any(path[0] == "head" for path in table):  # what a file of tied weights may hold once more
            ignored += (r"(^|\.)lm_head\.weight$",)
        found = weights.match(bound, stored, self.family.prefixes, ignored, str(self.source))
        arrays = weights.read(bound, found, table, shardings, dtype, matrices)
        return nest({_full(path, model or self.model): array for path, array in arrays.items()})


def open_checkpoint(place: str | Path) -> Checkpoint:
    """What a directory or a GGUF file holds. Raises FileError or ConfigError, which say what is wrong with it."""
    place = Path(place)
    if not place.exists():
        raise FileNotFoundError(f"there is no checkpoint {place}; it is a directory with a config.json, or a GGUF file")
    file = find_gguf(place)
    if file is not None:
        return _open_gguf(file)
    settings = parse_json(place / "config.json")
    stored = read_directory(place)
    family, model = _read(settings, str(place / "config.json"), stored)
    _check_depth(model, stored, place)
    return Checkpoint(place, place, family, settings, model, stored)


def _open_gguf(file: Path) -> Checkpoint:
    given, folder = read_gguf(file), Path(tempfile.mkdtemp(prefix="llmlab-"))
    try:
        settings = unpack(given, folder)
        family, model = _read(settings, f"the metadata of {file}")
        _check_depth(model, given.tensors, file)
        found = Checkpoint(file, folder, family, settings, model, {})
        wanted = [one.name for one in names_of(family, model, found.head)[1]]
        found = dataclasses.replace(found, stored=rename(given, wanted, settings))
    except BaseException:
        shutil.rmtree(folder)
        raise
    weakref.finalize(found, shutil.rmtree, folder, ignore_errors=True)
    return found


def _read(settings: dict, where: str, stored: dict[str, Stored] | None = None) -> tuple[Family, Model]:
    """The family of a config, and its model."""
    family, config = family_of(settings, where), Settings(settings, where, stored)
    try:
        config.refuse_heads("", *family.architecture)
        return family, family.read(config)
    except ConfigError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"{where} is no config of {family.kind!r}: {error}") from error


def _check_depth(model: Model, stored: dict[str, Stored], where: Path) -> None:
    """Raises FileError for more layers than tensors, before any of those layers is made."""
    trunk = core_of(model)
    depth = sum(getattr(trunk, name).depth for name in ("stack", "encoder") if hasattr(trunk, name))
    if depth > len(stored):
        raise FileError(f"{where} has {len(stored)} tensors, and its config asks for {depth} layers")


def family_of(settings: dict, where: str = "config.json") -> Family:
    """The family that a config names. Raises ConfigError for an unknown one."""
    kind, known = settings.get("model_type"), [family.kind for family in FAMILIES]
    for family in FAMILIES:
        if family.kind == kind or (kind is None and family.signs(settings)):
            return family
    hint = did_you_mean(str(kind), known) or f"; known are {', '.join(sorted(known))}"
    raise ConfigError(f"{where}: model_type is {kind!r}, which is not known here{hint}")


@functools.lru_cache(maxsize=1)  # a checkpoint that is loaded asks for one several times
def shapes(model: Model) -> Module:
    """The abstract model without its initial values: tracing those takes most of the time, and weights are read."""
    for kind in Init.__subclasses__():
        model = swap(model, kind, lambda _: Fill())
    return abstract(model.build)


def names_of(family: Family, model: Model, head: str) -> tuple[dict, list[Bound]]:
    """({path: Spec} of the parameters without "trunk", the tensors of a file). head: its kind."""
    trunk, stem = core_of(model), family.stems.get(head)
    table = {_short(path): spec for path, spec in specs(shapes(model)).items()}
    known = family.table(trunk) if callable(family.table) else family.table
    stacks = {name: getattr(trunk, name) for name in known.layers}
    bound = bind(known, stacks, table, head)
    if stem:
        pattern = "^" + re.escape(family.prefixes[0])
        bound = [dataclasses.replace(one, name=re.sub(pattern, stem, one.name)) for one in bound]
    return table, bound


def write_checkpoint(
    directory: str | Path,
    model: Model,
    params: dict,
    family: Family | None = None,
    settings: dict | None = None,
    dtype: str = "float32",
    shard: int = SHARD,
) -> list[Path]:
    """Writes config.json and the weights of a model, and gives the files.

    family: found by the model where it is None. settings: further keys of config.json, such as ids of special tokens.
    Raises ConfigError when no family has such a model.
    """
    directory = Path(directory)
    family, written = fit(model) if family is None else (family, write_config(family, model))
    directory.mkdir(parents=True, exist_ok=True)
    head = Settings(settings).head() if settings else kind_of(model)
    table, bound = names_of(family, model, head)
    arrays = {_short(path): leaf for path, leaf in _leaves(params)}
    files = write_directory(directory, weights.tensors(bound, arrays, table), np.dtype(dtype), shard)
    opened = family.architecture.get(head) or family.architecture[kind_of(model)]
    written |= {"architectures": [opened], "model_type": family.kind, "torch_dtype": dtype}
    content = {**(settings or {}), **written}
    (directory / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    return [directory / "config.json", *files]


def fit(model: Model) -> tuple[Family, dict]:
    """The family that has such a model, and the table of its config. Raises ConfigError where there is none."""
    why = []
    for family in FAMILIES:
        try:
            return family, write_config(family, model)
        except ConfigError as error:
            why.append(f"{family.kind}: {error}")
    raise ConfigError(
        f"no published family has a {type(model).__name__} like this, so no other tool would open it. What differs:\n  "
        + "\n  ".join(sorted(why, key=len))
    )


def write_config(family: Family, model: Model) -> dict:
    """The table of config.json of a model. Raises ConfigError with what the family cannot say."""
    try:
        written = family.write(model)
        kind = {"architectures": [family.architecture[kind_of(model)]], "model_type": family.kind}
        again = family.read(Settings({**written, **kind}))
    except (AttributeError, TypeError, KeyError, IndexError, ValueError) as error:
        raise ConfigError(str(error)) from error
    width = trunk_of(model).width
    differences = list(_differences("model", plain(model, width), plain(again, width)))
    if differences:
        raise ConfigError("; ".join(differences[:3]))
    return written


def _differences(path: str, ours, theirs):
    """Where two plain configs differ, in words."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        for index, (a, b) in enumerate(zip(ours, theirs)):
            named = isinstance(a, tuple) and len(a) == 2 and isinstance(a[0], str)
            yield from _differences(f"{path}.{a[0]}" if named else path if index == 0 else f"{path}.{index}", a, b)
    elif ours != theirs:
        yield f"{path} is {ours!r} and would be {theirs!r}"


def _renamed(name: str, family: Family) -> str:
    for pattern, replacement in family.renamed:
        name = re.sub(pattern, replacement, name)
    return name


def _full(path: tuple[str, ...], model: Config) -> tuple[str, ...]:
    """The path with "trunk" as often as the model has heads on other models."""
    if not hasattr(model, "trunk") or path[0] in ("out", "transform"):
        return path
    return ("trunk", *_full(path, model.trunk))


def _short(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(itertools.dropwhile("trunk".__eq__, path))


def _leaves(tree: dict, path: tuple[str, ...] = ()):
    for key, value in tree.items():
        yield from _leaves(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


__all__ = ["Checkpoint", "FileError", "family_of", "fit", "open_checkpoint", "write_checkpoint", "write_config"]
