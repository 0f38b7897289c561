"""One alphabet that executes: the same letters name dimensions, einsums, the axes of parameters and sharding rules.

A rule maps a letter to axes of the device mesh: `stored` for parameters, optimizer state and checkpoints, `live` for
activations. Model code only says which letters an array has; which mesh axis that means is decided here, once.
Rules multiply: `fsdp() * tensor()` shards by both. docs/notation.md has the table in prose.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math

import jax
from jax.sharding import NamedSharding, PartitionSpec

from llmlab.config import Config, config

LETTERS = {
    "B": "batch",
    "L": "length (queries)",
    "M": "memory length (keys)",
    "D": "model width",
    "H": "query heads",
    "G": "key/value heads",
    "K": "size of one head",
    "F": "hidden size of a feed-forward",
    "V": "vocabulary",
    "E": "experts",
    "N": "layers (the stacked axis)",
    "S": "state size",
    "C": "channels inside a mixer",
    "R": "low rank",
}


class LayoutError(ValueError):
    """A rule that cannot lay out an array over a mesh."""


Dims = dict[str, int]  # letter -> size; a lower-case letter has the size of its upper-case twin and no rule


@dataclasses.dataclass(frozen=True)
class Maybe(Config):
    """A mesh axis that is used where it divides the dimension; elsewhere the array is replicated over it."""

    axis: str


@dataclasses.dataclass(frozen=True)
class Beside(Maybe):
    """The same, in arrays that also have `letter`."""

    letter: str


Rule = tuple[str, tuple[str | Maybe, ...]]  # one letter and the mesh axes that share it


@config
class Rules(Config):
    """Which mesh axes share which letter, for stored arrays and for live ones."""

    name: str = "replicated"
    stored: tuple[Rule, ...] = ()
    live: tuple[Rule, ...] = ()

    def check(self):
        for letter, _ in self.stored + self.live:
            if letter not in LETTERS:
                raise ValueError(
                    f"rules {self.name!r}: {letter!r} is not a letter of the alphabet ({''.join(LETTERS)}); "
                    "rules name upper-case letters of llmlab/axes.py"
                )

        for name in ("stored", "live"):
            letters = [letter for letter, _ in getattr(self, name)]
            if len(set(letters)) < len(letters):
                raise ValueError(
                    f"rules {self.name!r}: {name} has the letters {''.join(letters)}, one of them twice; "
                    "give a letter all its axes in one rule"
                )

    def __mul__(self, other: Rules) -> Rules:
        join = lambda a, b: tuple(
            (letter, tuple(dict.fromkeys(dict(a).get(letter, ()) + dict(b).get(letter, ()))))
            for letter in dict.fromkeys([*dict(a), *dict(b)])
        )
        return Rules(
            name=f"{self.name}*{other.name}",
            stored=join(self.stored, other.stored),
            live=join(self.live, other.live),
        )

    def relaxed(self, letters: str) -> Rules:
        """The same rules, with every live use of `letters` under `Maybe` (decoding has batches of any size)."""
        soft = lambda axes: tuple(axis if isinstance(axis, Maybe) else Maybe(axis) for axis in axes)
        live = tuple((letter, soft(axes) if letter in letters else axes) for letter, axes in self.live)
        return dataclasses.replace(self, live=live)


def data() -> Rules:
    """Each device has its share of the batch and all parameters."""
    return Rules(name="data", live=(("B", ("data",)),))


def fsdp() -> Rules:
    """Batch and parameters are shared over one axis; a layer's parameters are gathered when it runs."""
    return Rules(name="fsdp", stored=(("D", ("fsdp",)),), live=(("B", ("fsdp",)),))


def tensor() -> Rules:
    """Heads, hidden units, channels and the vocabulary are shared; the model width is whole (Megatron-LM)."""
    wide = tuple((letter, ("tensor",)) for letter in "HFCV") + (("G", (Maybe("tensor"),)),)
    return Rules(name="tensor", stored=wide, live=wide)


def sequence() -> Rules:
    """Positions are shared; attention gathers keys and values (context parallelism)."""
    return Rules(name="sequence", live=(("L", ("sequence",)),))


def stream() -> Rules:
    """What `tensor` repeats is shared too: positions, where an array has the width (Korthikanti et al., 2022)."""
    return Rules(name="stream", live=(("L", (Beside("tensor", "D"),)),))


def expert() -> Rules:
    """Experts are shared; outside them the axis shares the batch, and other parameters along the width as `fsdp`."""
    stored = (("E", ("expert",)), ("D", (Maybe("expert"),)))
    return Rules(name="expert", stored=stored, live=(("B", ("expert",)), ("E", ("expert",))))


def every() -> Rules:
    """All rules at once: the sizes of the mesh alone decide which of them bite."""
    return dataclasses.replace(data() * fsdp() * expert() * sequence() * tensor(), name="every")


def spec(letters: str, shape: tuple[int, ...], rules: tuple[Rule, ...], sizes: dict[str, int]) -> PartitionSpec:
    """The partition of an array whose dimensions have these letters, over a mesh with these axis sizes.

    Raises LayoutError when a rule names an axis that the mesh lacks, uses one twice in the array, or does not divide.
    """
    if len(letters) != len(shape):
        raise ValueError(f"letters {letters!r} do not name the {len(shape)} dimensions of an array of shape {shape}")
    found, used = [], {}
    for letter, size in zip(letters, shape):
        axes, left = [], size
        for axis in dict(rules).get(letter, ()):
            name = axis.axis if isinstance(axis, Maybe) else axis
            if name not in sizes:
                raise LayoutError(f"the rule of {letter!r} names mesh axis {name!r}; the mesh has {', '.join(sizes)}")
            if sizes[name] == 1 or (isinstance(axis, Beside) and axis.letter not in letters):
                continue
            if isinstance(axis, Maybe) and (left % sizes[name] or name in used):
                continue
            if name in used:
                raise LayoutError(
                    f"array {letters!r} {shape}: {used[name]!r} and {letter!r} both use mesh axis {name!r}; "
                    f"change the rule of one, or make one Maybe({name!r})"
                )
            if left % sizes[name]:
                raise LayoutError(
                    f"array {letters!r} {shape}: {letter!r} ({LETTERS.get(letter, 'local')}) has size {size}, which "
                    f"mesh axis {name!r} of size {sizes[name]} does not divide; choose a size of the mesh that does "
                    f"(--mesh.{name}), or Maybe({name!r}) in the rule of {letter!r}"
                    + ("; for the vocabulary, raise `multiple` of the embedding" if letter == "V" else "")
                )
            used[name], left = letter, left // sizes[name]
            axes.append(name)
        found.append(tuple(axes) if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*found)


_scope: contextvars.ContextVar[tuple[jax.sharding.Mesh, Rules] | None] = contextvars.ContextVar("scope", default=None)


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh, rules: Rules):
    """Puts mesh and rules in force for `shard`. Entered inside the traced step, so that a jitted step keeps its own."""
    token = _scope.set((mesh, rules))
    try:
        yield
    finally:
        _scope.reset(token)


def scope() -> tuple[jax.sharding.Mesh, Rules] | None:
    """The mesh and rules in force."""
    return _scope.get()


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': where the traced program will run. The mesh decides, not the host."""
    found = scope()
    kind = found[0].devices.flat[0].platform if found else jax.default_backend()
    return "gpu" if kind in ("cuda", "rocm") else kind


def present() -> bool:
    """Whether the devices of the mesh in force exist: a program can be compiled for some that do not."""
    found = scope()
    client = getattr(found[0].devices.flat[0], "client", None) if found else None
    return not type(client).__name__.startswith("CompileOnly")


def shard(x: jax.Array, letters: str) -> jax.Array:
    """Holds an activation to the live rules in force; does nothing without a mesh.

    Its gradient is held to the same layout. `letters` may begin with "...", for leading dimensions without a rule.
    """
    if scope() is None or scope()[0].size == 1:
        return x
    mesh, rules = scope()
    if letters.startswith("..."):
        letters = "." * (x.ndim - len(letters) + 3) + letters[3:]
    partition = spec(letters, x.shape, rules.live, dict(mesh.shape))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, partition))


def stored(letters: str, shape: tuple[int, ...], mesh: jax.sharding.Mesh, rules: Rules) -> NamedSharding:
    """The sharding of a parameter or an optimizer moment with these letters."""
    return NamedSharding(mesh, spec(letters, shape, rules.stored, dict(mesh.shape)))


def flat(partition) -> tuple[str, ...]:
    """The mesh axes of a partition, or of some of its dimensions, in order."""
    parts = [() if part is None else (part,) if isinstance(part, str) else part for part in partition]
    return tuple(axis for part in parts for axis in part)


def letters_of(name: str) -> str:
    """The letters at the end of an array's name.

    >>> letters_of("tokens_BL")
    'BL'
    """
    return name.rpartition("_")[2]


def shape(letters: str, dims: Dims) -> tuple[int, ...]:
    """The sizes of the letters of a parameter. Raises ValueError for one below 1."""
    found = tuple(dims[letter.upper()] for letter in letters)
    for letter, count in zip(letters, found):
        if count < 1:
            name = LETTERS.get(letter.upper(), "local")
            raise ValueError(f"{letter!r} ({name}) of a parameter {letters!r} has size {count}; it is 1 or more")
    return found


def size(letters: str, dims: Dims) -> int:
    """The product of the sizes of some letters."""
    return math.prod(dims[letter.upper()] for letter in letters)
