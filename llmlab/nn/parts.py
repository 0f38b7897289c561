"""The slots of the config tree and what every part is given.

Each kind of slot has one empty base class, which every choice and every plug-in inherits; a config's `build(dims,
rngs)` makes the layer. docs/architecture.md tells the contract of a layer in prose.
"""

from __future__ import annotations

import dataclasses

import jax

from llmlab.axes import Dims
from llmlab.config import Config
from llmlab.nn.module import Module, Rngs


@dataclasses.dataclass(frozen=True)
class Declared:
    """What holds for a part. The contract tests what is declared, and fails what is violated undeclared."""

    causal: bool = True  # no position sees a later one
    isolated: bool = True  # documents packed in one row do not see each other
    decodable: bool = True  # it has `start` and `extend`

    def __and__(self, other: Declared) -> Declared:
        """What holds for a whole is what holds for all its parts."""
        return Declared(*(a and b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


class Part(Config):
    """A config that builds a layer from the sizes its parent gives."""

    def build(self, dims: Dims, rngs: Rngs) -> Module:
        raise TypeError(f"{type(self).__name__} must define build(dims, rngs)")

    def declared(self) -> Declared:
        return Declared()


class Mixer(Part):
    """Moves information along L.

    layer(x_BLD, ctx) -> (y_BLD, aux); layer.start(batch, length, ctx) -> state; layer.extend(x_BLD, state, ctx) ->
    (y_BLD, state); layer.letters: the letters of each array of the state; layer.cost(shape) -> Cost.
    """


class FeedForward(Part):
    """Works on each position: layer(x_BLD, ctx) -> (y_BLD, aux); layer.cost(shape) -> Cost."""


class Layer(Part):
    """One element of a stack's pattern, such as a block: the contract of a mixer, with the residual inside."""


class Norm(Part):
    """layer(x) -> x of the same shape, normalised over its last dimension; build(dims, rngs, letter="D")."""


class Position(Part):
    """layer(x, positions_BL) -> x with its positions written in: on the stream (x_BLD) or on queries and keys."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What a layer may know besides its input; never the name of a family.

    positions_BL: position in the document; negative on padding while decoding.
    segments_BL: which document of a packed row (1, 2, ...), 0 on padding; None when a row is one document.
    prefix_BL: True where a token belongs to the part that all tokens of its document may see; None without one.
    types_BL: the kind of each token (BERT's segment A or B); None where all are of one kind.
    memory_BMD: what an encoder made of the source; None without one.
    memory_segments_BM: which document each position of the memory belongs to, 0 on padding; None when all is one.
    bias: the position bias that a stack shares over its layers (llmlab/nn/bias.py); None without one.
    key: the random key of dropout at this layer; None where there is no dropout.
    layer: the traced index of the layer in its model.
    training: whether statistics are of this batch (batch normalisation) or those that were gathered.
    """

    positions_BL: jax.Array
    segments_BL: jax.Array | None = None
    prefix_BL: jax.Array | None = None
    types_BL: jax.Array | None = None
    memory_BMD: jax.Array | None = None
    memory_segments_BM: jax.Array | None = None
    bias: Module | None = None
    key: jax.Array | None = None
    layer: jax.Array | None = None
    training: bool = dataclasses.field(default=False, metadata={"static": True})
    dtype: jax.typing.DTypeLike = dataclasses.field(default="float32", metadata={"static": True})

    def at(self, layer: jax.Array) -> Context:
        """The context of one layer, with a key of its own."""
        key = None if self.key is None else jax.random.fold_in(self.key, layer)
        return dataclasses.replace(self, layer=layer, key=key)

    def apart(self, salt: int) -> Context:
        """The context with another key, for one of several parts of a layer."""
        return self if self.key is None else dataclasses.replace(self, key=jax.random.fold_in(self.key, salt))


def check_rate(owner: str, rate: float) -> None:
    """Raises ValueError unless `rate` is one that `drop` can take."""
    if not 0 <= rate < 1:
        raise ValueError(f"{owner}.dropout is {rate}; it is a share, 0 or more and below 1")


def drop(x: jax.Array, rate: float, ctx: Context, salt: int) -> jax.Array:
    """Dropout; `salt` tells apart the uses in one layer. Nothing where the rate is 0 or the context has no key."""
    if rate == 0 or ctx.key is None:
        return x
    share = jax.numpy.asarray(1 - rate, jax.numpy.float32)  # a study may trace the rate
    keep = jax.random.bernoulli(jax.random.fold_in(ctx.key, salt), share, x.shape)
    return jax.numpy.where(keep, x / (1 - rate), 0).astype(x.dtype)
