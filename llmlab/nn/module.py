"""The one place that imports Flax: NNX constructs modules, and everything else sees plain nested dicts of arrays.

A model is split into its structure (hashable, static) and two plain dicts: parameters, which gradients change, and
statistics, which the model itself changes. `jax.jit` runs over those; no Flax transform is used anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
from flax import nnx
from flax.nnx import List, Module, Param, Rngs, Variable

__all__ = [
    "List", "Module", "Param", "Rngs", "Spec", "Statistic", "Variable", "abstract", "merge", "parts", "split",
    "specs",
]  # fmt: skip

Tree = dict  # nested dicts of arrays with string keys


class Statistic(Variable):
    """State that is neither parameter nor optimizer: running means, router biases. Updated from `aux`."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of a parameter without its values."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: jax.typing.DTypeLike
    axes: str  # one letter for each dimension
    inputs: str = ""  # the letters that a matrix contracts, "" for what is no matrix
    unpadded: tuple[int, ...] = ()  # the shape without the padding of a vocabulary

    @property
    def size(self) -> int:
        """Elements, padding not counted."""
        size = 1
        for n in self.unpadded or self.shape:
            size *= n
        return size


def split(model: Module) -> tuple[object, Tree, Tree]:
    """(structure, parameters, statistics) of a model."""
    structure, params, stats = nnx.split(model, Param, Statistic)
    return structure, _plain(params), _plain(stats)


def merge(structure, params: Tree, stats: Tree | None = None) -> Module:
    """The model again. The dicts may hold tracers."""
    return nnx.merge(structure, _numbered(params), _numbered(stats or {}))


@functools.lru_cache(maxsize=1)  # a checkpoint that is loaded asks for one several times
def abstract(build: Callable[[Rngs], Module]) -> Module:
    """The model with shapes in place of values: no memory is taken, whatever its size."""
    return nnx.eval_shape(lambda: build(Rngs(params=jax.random.key(0))))


def specs(model: Module, kind: type = Param) -> dict[tuple[str, ...], Spec]:
    """{path: Spec} of the parameters (or statistics) of a model, abstract or real."""
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, kind)):
        meta, value = variable.get_metadata(), variable.get_value()
        names = tuple(str(part) for part in path)
        if len(meta.get("axes", "")) != len(value.shape):
            raise ValueError(f"{'.'.join(names)} of shape {value.shape} needs axes with one letter for each dimension")
        found[names] = Spec(
            names, value.shape, value.dtype, meta["axes"], meta.get("inputs", ""), meta.get("unpadded", ())
        )
    return found


def parts(model: Module, kind: type) -> list[Module]:
    """The parts of a model that are of this class."""
    return [part for _, part in nnx.iter_modules(model) if isinstance(part, kind)]


def leading(layers: Module, letter: str = "N") -> Module:
    """Marks every variable of vmapped layers with the letter of their new leading axis."""
    for variable in jax.tree.leaves(layers, is_leaf=lambda v: isinstance(v, Variable)):
        meta, size = variable.get_metadata(), variable.get_value().shape[0]
        unpadded = (size, *meta["unpadded"]) if meta.get("unpadded") else ()
        variable.set_metadata(axes=letter + meta["axes"], unpadded=unpadded)
    return layers


def _plain(state) -> Tree:
    named = lambda tree: {str(k): named(v) for k, v in tree.items()} if isinstance(tree, dict) else tree
    return named(nnx.to_pure_dict(state))


def _numbered(tree: Tree) -> Tree:
    number = lambda key: int(key) if key.isdigit() else key
    return {number(k): _numbered(v) if isinstance(v, dict) else v for k, v in tree.items()}
