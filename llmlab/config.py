"""The config tree: frozen dataclasses that build what they describe.

A config is the reference to its class: there is no registry, and no string names a part. It checks its own values,
is saved as JSON with `module:Class` at each node, reloads to an equal object, and shows its difference from another.

>>> @config
... class Ffn(Config):
...     hidden: int = 512
>>> put(Ffn(), "hidden", 64)
Ffn(hidden=64)
>>> Ffn(hiden=64)
Traceback (most recent call last):
    ...
TypeError: Ffn has no field 'hiden'; did you mean 'hidden'?
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator

REQUIRED = "<required>"  # the value of a leaf that every user must give, such as the path of a text


class Config:
    """Base of every config. A subclass may define `check(self)`, which raises on values that do not fit together."""

    def check(self) -> None:
        """Raises ValueError when the fields, right in type, do not fit together."""

    def __post_init__(self):
        types_of = hints(type(self))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, types_of[field.name]):
                raise TypeError(
                    f"{type(self).__name__}.{field.name} is {value!r}, a {type(value).__name__}; "
                    f"it takes {_show(types_of[field.name])}"
                )
            if value != value:
                raise ValueError(f"{type(self).__name__}.{field.name} is nan, which is no number")
        self.check()


@typing.dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type) -> type:
    """Makes `cls` a frozen, keyword-only dataclass whose constructor suggests the near name of an unknown field."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    init, names = cls.__init__, [f.name for f in dataclasses.fields(cls)]

    @functools.wraps(init)
    def checked(self, **values):
        for name in values:
            if name not in names:
                raise TypeError(f"{cls.__name__} has no field {name!r}{_near(name, names)}")
        init(self, **values)

    cls.__init__ = checked
    return cls


@functools.cache
def hints(cls: type) -> dict[str, object]:
    """{field: type} of a config class."""
    return typing.get_type_hints(cls)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean 'width'?", or nothing where none is like it."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _near(name: str, names: list[str]) -> str:
    return did_you_mean(name, names) or f"; it has {', '.join(names) or 'no fields'}"


def _fits(value, hint) -> bool:
    """Whether `value` is of the type that `hint` says; an int passes for a float, a bool for nothing but a bool."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(v, args[0]) for v in value)
        return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args))
    if hint in (None, type(None)):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _show(hint) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def nodes(cfg, path: str = "") -> Iterator[tuple[str, Config]]:
    """(dotted path, config) of every config of the tree, parents first."""
    if isinstance(cfg, Config):
        yield path, cfg
        children = [(f.name, getattr(cfg, f.name)) for f in dataclasses.fields(cfg)]
    elif isinstance(cfg, tuple):
        children = [(str(i), item) for i, item in enumerate(cfg)]
    else:
        return
    for name, child in children:
        yield from nodes(child, f"{path}.{name}" if path else name)


def get(cfg, path: str):
    """The value at a dotted path; numbers index tuples."""
    for name in path.split("."):
        cfg = _child(cfg, name, path)
    return cfg


def put(cfg, path: str, value):
    """`cfg` with the value at a dotted path replaced."""
    name, _, rest = path.partition(".")
    child = _child(cfg, name, path)
    new = put(child, rest, value) if rest else value
    if isinstance(cfg, tuple):
        return cfg[: int(name)] + (new,) + cfg[int(name) + 1 :]
    return dataclasses.replace(cfg, **{name: new})


def _child(cfg, name: str, path: str):
    if isinstance(cfg, tuple):
        if not name.isdigit() or int(name) >= len(cfg):
            raise KeyError(f"{path}: {name!r} is no index of a tuple of {len(cfg)}")
        return cfg[int(name)]
    names = [f.name for f in dataclasses.fields(cfg)] if isinstance(cfg, Config) else []
    if name not in names:
        raise KeyError(f"{path}: {type(cfg).__name__} has no field {name!r}{_near(name, names)}")
    return getattr(cfg, name)


def swap(cfg, old: type, make: Callable):
    """`cfg` with every node of exactly the class `old` replaced by `make(node)`."""
    if type(cfg) is old:
        return make(cfg)
    if isinstance(cfg, Config):
        return dataclasses.replace(
            cfg, **{f.name: swap(getattr(cfg, f.name), old, make) for f in dataclasses.fields(cfg)}
        )
    if isinstance(cfg, tuple):
        return tuple(swap(item, old, make) for item in cfg)
    return cfg


def flatten(cfg, path: str = "") -> dict[str, object]:
    """{dotted path: leaf}; the class of each node stands under its own path."""
    here = {path or ".": reference(type(cfg))} if isinstance(cfg, Config) else {}
    if isinstance(cfg, Config):
        children = [(f.name, getattr(cfg, f.name)) for f in dataclasses.fields(cfg)]
    elif isinstance(cfg, tuple) and cfg:
        children = [(str(i), item) for i, item in enumerate(cfg)]
    else:
        return {path: cfg}
    for name, child in children:
        here |= flatten(child, f"{path}.{name}" if path else name)
    return here


def diff(a, b) -> dict[str, tuple]:
    """{dotted path: (value in a, value in b)} wherever two configs differ; a side without that path has `...`."""
    flat_a, flat_b = flatten(a), flatten(b)
    sides = {path: (flat_a.get(path, ...), flat_b.get(path, ...)) for path in {**flat_a, **flat_b}}
    return {path: sides[path] for path in sides if sides[path][0] != sides[path][1]}


def show_diff(a, b) -> str:
    """The difference of two configs, one line a leaf."""
    side = lambda value: "absent" if value is ... else repr(value)
    return "\n".join(f"  {path}: {side(old)} -> {side(new)}" for path, (old, new) in diff(a, b).items())


def show(cfg, indent: str = "") -> str:
    """The tree as indented text: a class at each node, plain tuples on one line."""
    if isinstance(cfg, Config):
        children = [(f.name, getattr(cfg, f.name)) for f in dataclasses.fields(cfg)]
        head = type(cfg).__name__
    elif isinstance(cfg, tuple) and any(isinstance(item, Config) for item in cfg):
        children, head = [(str(i), item) for i, item in enumerate(cfg)], ""
    else:
        return repr(cfg)
    lines = [f"{indent}  {name}: {show(child, indent + '  ')}".replace(": \n", ":\n") for name, child in children]
    return "\n".join([head, *lines])


def brief(cfg) -> str:
    """One line: the class of each node with the fields that are not its defaults.

    >>> @config
    ... class Ffn(Config):
    ...     hidden: int = 512
    >>> brief((Ffn(), Ffn(hidden=64)))
    '(Ffn(), Ffn(hidden=64))'
    """
    if isinstance(cfg, Config):
        fields = [(f.name, getattr(cfg, f.name), f.default) for f in dataclasses.fields(cfg)]
        return f"{type(cfg).__name__}({', '.join(f'{n}={brief(v)}' for n, v, default in fields if v != default)})"
    return f"({', '.join(map(brief, cfg))})" if isinstance(cfg, tuple) else repr(cfg)


def reference(cls: type) -> str:
    """`module:Class`, by which a saved config finds its class again."""
    return f"{cls.__module__}:{cls.__qualname__}"


def to_dict(cfg):
    """Plain dicts, lists and leaves, with `module:Class` under `_type` at each node."""
    if isinstance(cfg, Config):
        return {"_type": reference(type(cfg))} | {
            f.name: to_dict(getattr(cfg, f.name)) for f in dataclasses.fields(cfg)
        }
    return [to_dict(item) for item in cfg] if isinstance(cfg, tuple) else cfg


def from_dict(data, path: str = "config"):
    """The config that `to_dict` gave. Raises with the path of the node when a class or a field is not to be found."""
    if isinstance(data, list):
        return tuple(from_dict(item, f"{path}.{i}") for i, item in enumerate(data))
    if not isinstance(data, dict):
        return data
    module, _, name = data.get("_type", "").partition(":")
    try:
        cls = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: the class {data.get('_type')!r} cannot be imported ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, Config)):
        raise ValueError(f"{path}: {data['_type']!r} is no config")
    values = {key: from_dict(value, f"{path}.{key}") for key, value in data.items() if key != "_type"}
    try:
        return cls(**values)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from error


def to_json(cfg) -> str:
    return json.dumps(to_dict(cfg), indent=1)


def from_json(text: str):
    return from_dict(json.loads(text))


def digest(*values) -> str:
    """16 hexadecimal digits that name configs and plain values, for the keys of caches and runs."""
    return hashlib.sha256(json.dumps([to_dict(v) for v in values], sort_keys=True).encode()).hexdigest()[:16]
