"""The layout of the optimizer's state: each moment lies where its parameter lies.

`jit(transformation.init)` leaves its state unsharded without a word, so the layout is told, leaf by leaf, from the
parameter's letters.
"""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llmlab import axes
from llmlab.nn.module import Spec
from llmlab.optim.groups import Path


def state_letters(state, specs: dict[Path, Spec]):
    """The optimizer's state (abstract or real) with the letters of each leaf in its place, "" for what has none.

    A leaf has the letters of the parameter whose path is the longest suffix of its own and whose shape is equal;
    factored moments have those that survive.
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _letters(names(path), leaf.shape, specs), state)


def state_shardings(state, specs: dict[Path, Spec], mesh: Mesh, rules: axes.Rules):
    """The sharding of each leaf under the `stored` rules; what has no letters is replicated."""

    def sharding(leaf, letters: str) -> NamedSharding:
        return axes.stored(letters, leaf.shape, mesh, rules) if letters else NamedSharding(mesh, PartitionSpec())

    return jax.tree.map(sharding, state, state_letters(state, specs))


def unlettered(state, specs: dict[Path, Spec]) -> dict[str, tuple[int, ...]]:
    """{dotted path: shape} of the leaves of more than one element that have no letters, so lie whole on each device."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    found = {names(path): leaf.shape for path, leaf in leaves}
    return {
        ".".join(path): shape
        for path, shape in found.items()
        if np.prod(shape) > 1 and not _letters(path, shape, specs)
    }


def names(path: tuple) -> Path:
    """The components of a path of JAX's trees as strings: keys of dicts, fields of tuples, positions."""
    return tuple(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)


def _letters(path: Path, shape: tuple[int, ...], specs: dict[Path, Spec]) -> str:
    for start in range(len(path)):  # the longest suffix first
        spec = specs.get(path[start:])
        if spec is None:
            continue
        if spec.shape == shape:
            return spec.axes
        kept = _kept(spec.shape, path[start - 1] if start else "")
        if kept is not None and tuple(spec.shape[i] for i in kept) == shape:
            return "".join(spec.axes[i] for i in kept)
    return ""


def _kept(shape: tuple[int, ...], moment: str) -> list[int] | None:
    """The dimensions that a factored moment keeps, by the rule of optax.scale_by_factored_rms.

    `v_row` is averaged over the largest dimension and `v_col` over the second largest; which of two equal ones comes
    first is decided by `np.argsort`, here as there.
    """
    if moment not in ("v_row", "v_col") or len(shape) < 2:
        return None
    dropped = int(np.argsort(shape)[-1 if moment == "v_row" else -2])
    return [i for i in range(len(shape)) if i != dropped]
