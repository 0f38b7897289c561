"""An encoder and a decoder that reads what it made (Sutskever et al., 2014; Vaswani et al., 2017).

The context carries the encoder's output to the decoder's layers: those with cross-attention, or any other that reads a
memory. Letters: M, positions of the source.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.ffn.dense import Mlp
from llmlab.mixers.attention import Attention, Bidirectional
from llmlab.mixers.cross import CrossAttention
from llmlab.models.block import Block
from llmlab.models.decoder import DecoderModel, Model, under
from llmlab.nn.embed import Embedding, Head, TiedHead
from llmlab.nn.module import Module
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Norm
from llmlab.nn.stack import Stack, repeat


@config
class EncoderDecoder(Model):
    """vocab: entries that are real, of source and target. encoder, stack: the two halves; the decoder's is `stack`.

    source_embed: None where source and target share an embedding, SharedEmbedding where they share its table alone.
    norm, source_norm: after the last layer of each.
    """

    vocab: int = 256
    width: int = 256
    embed: Embedding = Embedding()
    source_embed: Embedding | None = None
    encoder: Stack = repeat(Block(mixer=Attention(view=Bidirectional()), ffn=Mlp()), 4)
    stack: Stack = repeat(Block(cross=CrossAttention(), ffn=Mlp()), 4)
    norm: Norm | None = RMSNorm()
    source_norm: Norm | None = RMSNorm()
    head: Head = TiedHead()

    def declared(self):
        """What holds for the decoder: the source is read whole."""
        return self.stack.declared()

    def build(self, rngs):
        return EncoderDecoderModel(self, rngs)


class EncoderDecoderModel(DecoderModel):
    def __init__(self, cfg: EncoderDecoder, rngs):
        super().__init__(cfg, rngs)
        dims = {"V": cfg.vocab, "D": cfg.width, "N": cfg.encoder.depth}
        self.source_embed = cfg.source_embed and cfg.source_embed.build(dims, rngs)
        self.encoder = cfg.encoder.build(dims, rngs)
        self.source_norm = cfg.source_norm and cfg.source_norm.build(dims, rngs)

    def encode(self, source_BM: jax.Array, ctx: Context):
        """(memory_BMD, aux): what the decoder reads."""
        x_BMD, aux = self.encoder(self.embed_source(source_BM, ctx), ctx)
        return (x_BMD if self.source_norm is None else self.source_norm(x_BMD)), under("encoder", aux)

    def embed_source(self, source_BM: jax.Array, ctx: Context) -> jax.Array:
        if self.source_embed is None:
            return self.embed(source_BM, ctx)
        return self.source_embed(source_BM, ctx, self.embed.table)

    def trace(self, source_BM, target_BL, source: Context, ctx: Context) -> tuple[list[jax.Array], list[jax.Array]]:
        """The stream of the source, and of the target, before the first layer and after each; the last normalised."""
        found = []
        for stack, x_BLD, near, norm in (
            (self.encoder, self.embed_source(source_BM, source), source, self.source_norm),
            (self.stack, self.embed(target_BL, ctx), ctx, self.norm),
        ):
            states = stack.trace(x_BLD, near)
            found.append(states if norm is None else [*states[:-1], norm(states[-1])])
        return tuple(found)

    def cost(self, shape: Shape) -> Cost:
        """Both halves; shape.memory is the length of the source, and of the target if that is not given."""
        memory = shape.length if shape.memory is None else shape.memory
        source = Shape(shape.batch, memory, itemsize=shape.itemsize)
        target = Shape(shape.batch, shape.length, memory, shape.outputs, shape.itemsize)
        return self.encoder.cost(source) + self.stack.cost(target) + self.head.cost(target, self.embed)


@config
class Reread(Model):
    """An encoder-decoder that reads a row twice: the decoder reads what the encoder has read, beside its memory of it.

    So BART classifies (Lewis et al., 2020, section 3.3), under a pooled head. start: an id the decoder reads first,
    and each token one place later, as in the files of BART.
    """

    trunk: EncoderDecoder = EncoderDecoder()
    start: int | None = None

    vocab = property(lambda self: self.trunk.vocab)
    width = property(lambda self: self.trunk.width)

    def declared(self):
        """The encoder sees the whole row."""
        found = self.trunk.declared() & self.trunk.encoder.declared()
        return dataclasses.replace(found, causal=False, decodable=False)

    def build(self, rngs):
        return RereadModel(self, rngs)


class RereadModel(Module):
    def __init__(self, cfg: Reread, rngs):
        self.trunk, self.start = cfg.trunk.build(rngs), cfg.start

    def __call__(self, tokens_BL: jax.Array, ctx: Context):
        """(hidden_BLD, aux) of the decoder."""
        return self.body(self.embed(tokens_BL, ctx), ctx)

    def embed(self, tokens_BL: jax.Array, ctx: Context):
        """The rows of encoder and decoder one beside the other: the last axis has twice the width."""
        x_BLD, read_BL = self.trunk.embed_source(tokens_BL, ctx), tokens_BL
        if self.start is not None:
            read_BL = jnp.where(ctx.positions_BL == 0, self.start, jnp.roll(tokens_BL, 1, axis=1))
        return jnp.concatenate([x_BLD, self.trunk.embed(read_BL, ctx)], axis=-1)

    def body(self, both_BLD: jax.Array, ctx: Context):
        x_BLD, y_BLD = jnp.split(both_BLD, 2, axis=-1)
        apart = None if ctx.key is None else jax.random.fold_in(ctx.key, 1 << 20)  # no layer of the decoder has it
        memory_BMD, read = self.trunk.encoder(x_BLD, dataclasses.replace(ctx, key=apart))
        if self.trunk.source_norm is not None:
            memory_BMD = self.trunk.source_norm(memory_BMD)
        both = dataclasses.replace(ctx, memory_BMD=memory_BMD, memory_segments_BM=ctx.segments_BL)
        hidden_BLD, found = self.trunk.body(y_BLD, both)
        stats = under("encoder", read).get("stats", {}) | found.get("stats", {})
        scalars = {name: value for name, value in (read | found).items() if name != "stats"}
        return hidden_BLD, scalars | ({"stats": {"trunk": stats}} if stats else {})

    @property
    def longest(self):
        return self.trunk.longest

    @property
    def stack(self):
        raise ValueError("a row that is read twice has two streams of hidden states; ask for what the head gives")

    def cost(self, shape: Shape) -> Cost:
        return self.trunk.cost(dataclasses.replace(shape, memory=shape.length))
