"""The leaves of an experiment as command-line flags: plain dataclasses that mirror the values it holds.

Every node becomes a dataclass of its own leaves and children, whatever base class its slot is typed by, so that the
fields of a plug-in are flags too. A slot that holds None has no flag: it is filled in Python. Rules are given by name,
such as `--rules fsdp*tensor`.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Annotated, Any

import tyro

from llmlab import axes
from llmlab.axes import Rules
from llmlab.config import REQUIRED, Config, hints

RULES = {name: getattr(axes, name) for name in ("data", "fsdp", "tensor", "sequence", "stream", "expert", "every")}


def mirror(value, demand: bool) -> tuple[type, Any]:
    """(type, default) that tyro shows for a config or a tuple of configs. demand: a REQUIRED leaf must be given."""
    fields, defaults = [], {}
    for name, hint, child in children(value):
        if isinstance(child, Rules):
            hint, default = str, child.name
        elif children(child):
            hint, default = mirror(child, demand)
        elif demand and child == REQUIRED:
            default = tyro.MISSING
        else:
            default = child
        key = f"item{name}" if name.isdigit() else name
        fields.append((key, Annotated[hint, tyro.conf.arg(name=name)]))
        defaults[key] = default
    cls = dataclasses.make_dataclass(type(value).__name__, fields)
    cls.__doc__ = (type(value).__doc__ or "") if isinstance(value, Config) else ""
    return cls, cls(**defaults)


def children(value) -> list[tuple[str, Any, Any]]:
    """(name, type, value) of what of a node can be set: leaves and filled slots."""
    if isinstance(value, Rules):
        return []
    if isinstance(value, tuple) and any(isinstance(item, Config) for item in value):
        return [(str(i), type(item), item) for i, item in enumerate(value)]
    if not isinstance(value, Config):
        return []
    known = hints(type(value))
    pairs = [(f.name, known[f.name], getattr(value, f.name)) for f in dataclasses.fields(value)]
    return [(name, hint, child) for name, hint, child in pairs if not empty_slot(hint, child)]


def empty_slot(hint, value) -> bool:
    """Whether a field is a slot for configs that holds none, or an empty tuple of them."""
    kinds = getattr(hint, "__args__", None) or (hint,)
    return value in (None, ()) and any(isinstance(kind, type) and issubclass(kind, Config) for kind in kinds)


def restore(value, mirrored):
    """The config with the leaves that its mirror holds; the config's own checks run."""
    new = {}
    for name, _, child in children(value):
        found = getattr(mirrored, f"item{name}" if name.isdigit() else name)
        if isinstance(child, Rules):
            new[name] = rules(found, child)
        else:
            new[name] = restore(child, found) if children(child) else found
    if isinstance(value, tuple):
        return tuple(new[str(i)] for i in range(len(value)))
    return dataclasses.replace(value, **new)


def rules(name: str, own: Rules) -> Rules:
    """The rules of a name: the experiment's own, those of llmlab/axes.py, or several joined by `*`."""
    first = [own] if f"{name}*".startswith(f"{own.name}*") else []
    parts = name.removeprefix(own.name).split("*")[1:] if first else name.split("*")
    unknown = [part for part in parts if part not in RULES]
    if unknown:
        raise ValueError(f"--rules {name}: there are no rules {unknown[0]!r}; there are {', '.join(RULES)}, and a*b")
    return functools.reduce(operator.mul, first + [RULES[part]() for part in parts])
