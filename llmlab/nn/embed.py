"""Token ids to vectors, and vectors to the loss over the vocabulary."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab import axes
from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.kernels.cross_entropy import Form, cross_entropy, finish
from llmlab.kernels.lookup import look_up
from llmlab.kernels.matmul import scores
from llmlab.nn.activation import Activation, activate
from llmlab.nn.einsum import ZEROS, Einsum, parameter
from llmlab.nn.init import Init, Normal
from llmlab.nn.module import Module, Param
from llmlab.nn.norm import LayerNorm
from llmlab.nn.parts import Context, Norm, Part, Position, check_rate, drop


@config
class Embedding(Part):
    """power: the vectors are multiplied by width ** power (0.5 in the original Transformer and Gemma).

    multiple: the table is padded to a multiple of it, so that a mesh divides the vocabulary; padding is never
    predicted and not counted. types: kinds of tokens, each with a vector of its own (BERT's segments A and B).
    """

    position: Position | None = None
    norm: Norm | None = None
    power: float = 0.0
    multiple: int = 1
    types: int = 0
    dropout: float = 0.0
    init: Init = Normal()

    def check(self):
        check_rate("Embedding", self.dropout)
        if self.multiple < 1:
            raise ValueError(f"Embedding.multiple is {self.multiple}; the table is padded to a multiple of 1 or more")

    def build(self, dims, rngs):
        return EmbeddingLayer(self, dims, rngs, vocabulary(dims, rngs, self.init, self.multiple))


@config
class SharedEmbedding(Embedding):
    """The table of another embedding, under positions, norm and dropout of its own (a source and its target)."""

    def build(self, dims, rngs):
        return EmbeddingLayer(self, dims, rngs, None)


def vocabulary(dims, rngs, init: Init, multiple: int) -> Param:
    """A table with one row for each entry of the vocabulary, padded with zeros."""
    entries, width = axes.shape("VD", dims)
    rows = -(-entries // multiple) * multiple
    table_VD = init(rngs.params(), (entries, width), width, dims.get("N", 1))
    padded_VD = jnp.pad(table_VD, ((0, rows - entries), (0, 0)))
    return Param(padded_VD, axes="VD", inputs="D", unpadded=(entries, width))


class EmbeddingLayer(Module):
    def __init__(self, cfg: Embedding, dims, rngs, table: Param | None):
        self.cfg = cfg
        self.table = table
        shape = (cfg.types, dims["D"])
        self.types = Param(cfg.init(rngs.params(), shape, dims["D"], 1), axes="eD") if cfg.types else None
        self.position = cfg.position and cfg.position.build(dims, rngs)
        self.norm = cfg.norm and cfg.norm.build(dims, rngs)

    def __call__(self, tokens_BL: jax.Array, ctx: Context, table: Param | None = None) -> jax.Array:
        """table: of another embedding, for one that has none."""
        table = table if self.table is None else self.table
        x_BLD = shard(look_up(table[...].astype(ctx.dtype), tokens_BL), "BLD")
        if self.cfg.power:
            x_BLD *= jnp.asarray(x_BLD.shape[-1] ** self.cfg.power, x_BLD.dtype)
        if self.types is not None:
            types_eD = shard(self.types[...].astype(x_BLD.dtype), "ed")
            x_BLD += types_eD[0] if ctx.types_BL is None else shard(types_eD[ctx.types_BL], "BLD")
        if self.position is not None:
            x_BLD = self.position(x_BLD, ctx.positions_BL)
        if self.norm is not None:
            x_BLD = self.norm(x_BLD)
        return shard(drop(x_BLD, self.cfg.dropout, ctx, salt=0), "BLD")


class Head(Part):
    """build(dims, rngs, embedding) -> layer with `nll` (the loss, in chunks) and `logits`."""


@config
class TiedHead(Head):
    """The embedding's own table (Press & Wolf, 2017). power: hidden states times width ** power (T5: -0.5)."""

    bias: Init | None = None
    softcap: float | None = None
    power: float = 0.0

    def build(self, dims, rngs, embedding):
        return HeadLayer(self, dims, rngs, None)


@config
class LinearHead(Head):
    """A table of its own."""

    bias: Init | None = None
    softcap: float | None = None
    power: float = 0.0
    init: Init = Normal()

    def build(self, dims, rngs, embedding):
        return HeadLayer(self, dims, rngs, vocabulary(dims, rngs, self.init, embedding.multiple))


class HeadLayer(Module):
    def __init__(self, cfg: TiedHead | LinearHead, dims, rngs, table: Param | None):
        self.form = Form(vocab=dims["V"], softcap=cfg.softcap, scale=dims["D"] ** cfg.power)
        self.table = table
        self.bias = None if cfg.bias is None else parameter(cfg.bias, "v", dims, rngs)

    def nll(self, x_BLD, embedding: EmbeddingLayer, targets_BL, weights_BL, smoothing=0.0, z_loss=0.0):
        """(sum of losses, sums): see `llmlab.kernels.cross_entropy`."""
        form = Form(self.form.vocab, smoothing, z_loss, self.form.softcap, self.form.scale)
        w_VD, bias_V = self.weights(embedding)
        return cross_entropy(x_BLD, w_VD, bias_V, targets_BL, weights_BL, form)

    def logits(self, x_BLD, embedding: EmbeddingLayer) -> jax.Array:
        """Logits over the real vocabulary, in float32: for a few positions, as in decoding."""
        w_VD, bias_V = self.weights(embedding)
        return finish(scores(x_BLD, w_VD), bias_V, self.form)[..., : self.form.vocab]

    def weights(self, embedding: EmbeddingLayer):
        table, bias_V = self.read(embedding), self.bias
        if bias_V is not None:
            bias_V = jnp.pad(bias_V[...], (0, table.shape[0] - self.form.vocab))
        return table[...], bias_V

    def read(self, embedding: EmbeddingLayer) -> Param:
        """The table: its own, or the embedding's."""
        return embedding.table if self.table is None else self.table

    def cost(self, shape: Shape, embedding: EmbeddingLayer) -> Cost:
        """Only real entries count as algorithmic; the padding is executed too."""
        rows, width = self.read(embedding).shape
        tokens = shape.batch * (shape.length if shape.outputs is None else shape.outputs)
        flops = 2.0 * tokens * width
        moved = shape.itemsize * (rows * width + tokens * width)
        return Cost(flops * self.form.vocab, flops * rows, moved)


@config
class TransformHead(Head):
    """A dense layer with activation and norm before another head (BERT's masked-LM head)."""

    head: Head = TiedHead(bias=ZEROS)
    activation: Activation = "gelu"
    norm: Norm | None = LayerNorm()
    bias: Init | None = ZEROS
    init: Init = Normal()

    def build(self, dims, rngs, embedding):
        return TransformHeadLayer(self, dims, rngs, embedding)


class TransformHeadLayer(Module):
    def __init__(self, cfg: TransformHead, dims, rngs, embedding: Embedding):
        self.cfg = cfg
        self.dense = Einsum("BLD,Dd->BLd", dims, rngs, cfg.init, cfg.bias)
        self.norm = cfg.norm and cfg.norm.build(dims, rngs)
        self.head = cfg.head.build(dims, rngs, embedding)

    def nll(self, x_BLD, *args, **options):
        return self.head.nll(self.transform(x_BLD), *args, **options)

    def logits(self, x_BLD, embedding):
        return self.head.logits(self.transform(x_BLD), embedding)

    def transform(self, x_BLD):
        x_BLD = activate(self.cfg.activation, self.dense(x_BLD))
        return x_BLD if self.norm is None else self.norm(x_BLD)

    def cost(self, shape: Shape, embedding: EmbeddingLayer) -> Cost:
        tokens = shape.length if shape.outputs is None else shape.outputs
        return self.dense.cost(Shape(shape.batch, tokens, itemsize=shape.itemsize)) + self.head.cost(shape, embedding)
