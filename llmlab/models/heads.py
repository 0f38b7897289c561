"""Heads that read a whole row: classes, and vectors for retrieval.

Letters of this file: J, classes.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.kernels.cross_entropy import Form, cross_entropy
from llmlab.models.decoder import Model, under
from llmlab.nn.activation import Activation, activate
from llmlab.nn.einsum import ZEROS, Einsum
from llmlab.nn.init import Init, Normal
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, Part, check_rate, drop


class Pooling(Part):
    """How the hidden states of a row become one: pooling(hidden_BLD, real_BL) -> pooled_BD."""

    def __call__(self, hidden_BLD: jax.Array, real_BL: jax.Array) -> jax.Array:
        raise TypeError(f"{type(self).__name__} must define __call__(hidden_BLD, real_BL)")


@config
class First(Pooling):
    """The first position that is no padding (BERT's [CLS])."""

    def __call__(self, hidden_BLD, real_BL):
        return jnp.take_along_axis(hidden_BLD, jnp.argmax(real_BL, axis=1)[:, None, None], axis=1)[:, 0]


@config
class Last(Pooling):
    """The last position that is no padding: of a causal model, the only one that has read all."""

    def __call__(self, hidden_BLD, real_BL):
        at_B = real_BL.shape[1] - 1 - jnp.argmax(real_BL[:, ::-1], axis=1)
        return jnp.take_along_axis(hidden_BLD, at_B[:, None, None], axis=1)[:, 0]


@config
class Mean(Pooling):
    """The mean over what is no padding (Reimers & Gurevych, 2019)."""

    def __call__(self, hidden_BLD, real_BL):
        weights_BL = real_BL / jnp.maximum(real_BL.sum(1, keepdims=True), 1)
        return (hidden_BLD * weights_BL[..., None].astype(hidden_BLD.dtype)).sum(1)


@config
class Max(Pooling):
    """The largest of each channel over what is no padding (Kim, 2014)."""

    def __call__(self, hidden_BLD, real_BL):
        lowest = jnp.finfo(hidden_BLD.dtype).min
        return jnp.where(real_BL[..., None], hidden_BLD, lowest).max(1)


@config
class Transform(Part):
    """A dense layer with activation on what was pooled (BERT's pooler, with tanh)."""

    activation: Activation = "tanh"
    bias: Init | None = ZEROS
    init: Init = Normal()

    def build(self, dims, rngs):
        return TransformLayer(self, dims, rngs)


class TransformLayer(Module):
    def __init__(self, cfg: Transform, dims, rngs):
        self.cfg = cfg
        self.dense = Einsum("BD,Dd->Bd", dims, rngs, cfg.init, cfg.bias)

    def __call__(self, x_BD):
        return activate(self.cfg.activation, self.dense(x_BD))


@config
class Pooled(Model):
    """A model whose hidden states are pooled: vectors for retrieval, or classes.

    trunk: any model. classes: None for vectors alone. transform: between pooling and classes. bias: of the classes,
    None for none.
    """

    trunk: Model
    pooling: Pooling = Mean()
    transform: Transform | None = None
    classes: int | None = None
    dropout: float = 0.0
    bias: Init | None = ZEROS
    init: Init = Normal()

    def check(self):
        check_rate("Pooled", self.dropout)
        if self.classes is not None and self.classes < 2:
            raise ValueError(f"Pooled.classes is {self.classes}; a choice needs 2 or more")

    vocab = property(lambda self: self.trunk.vocab)
    width = property(lambda self: self.trunk.width)
    outcomes = property(lambda self: self.classes)

    def declared(self):
        return dataclasses.replace(self.trunk.declared(), decodable=False)

    def build(self, rngs):
        return PooledModel(self, rngs)


class OnTrunk(Module):
    """What a head on another model shares with it."""

    def __init__(self, cfg, rngs):
        self.cfg = cfg
        self.trunk = cfg.trunk.build(rngs)

    def __call__(self, tokens_BL, ctx: Context):
        """(hidden_BLD, aux) of the trunk."""
        hidden_BLD, aux = self.trunk(tokens_BL, ctx)
        return hidden_BLD, under("trunk", aux)

    def embed(self, tokens_BL, ctx: Context):
        return self.trunk.embed(tokens_BL, ctx)

    def body(self, x_BLD, ctx: Context):
        hidden_BLD, aux = self.trunk.body(x_BLD, ctx)
        return hidden_BLD, under("trunk", aux)

    @property
    def longest(self):
        return self.trunk.longest


class PooledModel(OnTrunk):
    def __init__(self, cfg: Pooled, rngs):
        super().__init__(cfg, rngs)
        dims = {"D": cfg.width, "J": cfg.classes}
        self.transform = cfg.transform and cfg.transform.build(dims, rngs)
        self.out = None if cfg.classes is None else Einsum("BD,DJ->BJ", dims, rngs, cfg.init, cfg.bias)

    def pool(self, hidden_BLD, ctx: Context) -> jax.Array:
        """pooled_BD: one vector for each row."""
        real_BL = jnp.ones(hidden_BLD.shape[:2], bool) if ctx.segments_BL is None else ctx.segments_BL > 0
        pooled_BD = self.cfg.pooling(hidden_BLD, real_BL)
        return pooled_BD if self.transform is None else self.transform(pooled_BD)

    def classify(self, hidden_BLD, ctx: Context) -> jax.Array:
        """logits_BJ in float32."""
        if self.out is None:
            raise ValueError("this Pooled model gives vectors; set its `classes` to classify")
        return self.out(drop(self.pool(hidden_BLD, ctx), self.cfg.dropout, ctx, salt=5)).astype(jnp.float32)

    def cost(self, shape: Shape) -> Cost:
        rows = Shape(shape.batch, 1, itemsize=shape.itemsize)
        parts = [part for part in (self.transform and self.transform.dense, self.out) if part is not None]
        found = self.trunk.cost(dataclasses.replace(shape, outputs=0))
        for part in parts:
            found += part.cost(rows)
        return found


@config
class Tagged(Model):
    """A model with classes for each token: names in a text, or the two ends of an answer (Devlin et al., 2018)."""

    trunk: Model
    classes: int = 2
    dropout: float = 0.0
    bias: Init | None = ZEROS
    init: Init = Normal()

    def check(self):
        check_rate("Tagged", self.dropout)
        if self.classes < 1:
            raise ValueError(f"Tagged.classes is {self.classes}; a token has 1 or more")

    vocab = property(lambda self: self.trunk.vocab)
    width = property(lambda self: self.trunk.width)
    outcomes = property(lambda self: self.classes)

    def declared(self):
        return dataclasses.replace(self.trunk.declared(), decodable=False)

    def build(self, rngs):
        return TaggedModel(self, rngs)


class TaggedModel(OnTrunk):
    def __init__(self, cfg: Tagged, rngs):
        super().__init__(cfg, rngs)
        self.out = Einsum("BLD,DJ->BLJ", {"D": cfg.width, "J": cfg.classes}, rngs, cfg.init, cfg.bias)

    def tag(self, hidden_BLD, ctx: Context) -> jax.Array:
        """logits_BLJ in float32."""
        return self.out(drop(hidden_BLD, self.cfg.dropout, ctx, salt=5)).astype(jnp.float32)

    def nll(self, hidden_BLD, targets_BL, weights_BL, smoothing: float = 0.0, z_loss: float = 0.0):
        """(sum of losses, {"nll", "correct", "hits_BL"}) over weighted targets, as of a head of language."""
        form = Form(self.cfg.classes, smoothing, z_loss)
        bias_J = None if self.out.bias is None else self.out.bias[...]
        return cross_entropy(hidden_BLD, self.out.w[...].T, bias_J, targets_BL, weights_BL, form)

    def cost(self, shape: Shape) -> Cost:
        outputs = shape.length if shape.outputs is None else shape.outputs
        tags = self.out.cost(Shape(shape.batch, outputs, itemsize=shape.itemsize))
        return self.trunk.cost(dataclasses.replace(shape, outputs=0)) + tags
