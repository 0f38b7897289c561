"""A decoder: embedding, stack, norm, head. With causal parts it is a GPT; which parts, the config's values say.

`TokenModel` is what every model of tokens has: encoders, and the two halves of an encoder-decoder.
"""

from __future__ import annotations

import jax

from llmlab.config import config
from llmlab.cost import Cost, Shape
from llmlab.models.block import Block
from llmlab.nn.embed import Embedding, Head, LinearHead
from llmlab.nn.module import Module, Rngs
from llmlab.nn.norm import RMSNorm
from llmlab.nn.parts import Context, Declared, Norm, Part
from llmlab.nn.stack import Stack, repeat


class Model(Part):
    """build(rngs) -> model(tokens_BL, ctx) -> (hidden_BLD, aux), with a head that gives losses and logits.

    vocab: ids that it knows. outcomes: what the head chooses among, `vocab` for models of language. width: of the
    hidden states.
    """

    @property
    def outcomes(self) -> int:
        return self.vocab

    def build(self, rngs: Rngs) -> Module:
        raise TypeError(f"{type(self).__name__} must define build(rngs)")


@config
class Decoder(Model):
    """vocab: entries that are real. norm: after the last layer, None for none (post-norm blocks)."""

    vocab: int = 256
    width: int = 256
    embed: Embedding = Embedding()
    stack: Stack = repeat(Block(), 4)
    norm: Norm | None = RMSNorm()
    head: Head = LinearHead()

    def declared(self) -> Declared:
        return self.stack.declared()

    def build(self, rngs):
        return DecoderModel(self, rngs)


def under(name: str, aux: dict) -> dict:
    """What a part of this name found, with its new statistics under the part's path."""
    return {**aux, "stats": {name: aux["stats"]}} if "stats" in aux else aux


class TokenModel(Module):
    """Embedding, stack, norm and head, of a config that has these fields."""

    def __init__(self, cfg, rngs: Rngs):
        dims = {"V": cfg.vocab, "D": cfg.width, "N": cfg.stack.depth}
        self.embed = cfg.embed.build(dims, rngs)
        self.stack = cfg.stack.build(dims, rngs)
        self.norm = cfg.norm and cfg.norm.build(dims, rngs)
        self.head = cfg.head.build(dims, rngs, cfg.embed)

    def __call__(self, tokens_BL: jax.Array, ctx: Context):
        """(hidden_BLD, aux)."""
        return self.body(self.embed(tokens_BL, ctx), ctx)

    def body(self, x_BLD: jax.Array, ctx: Context):
        """What stands between embedding and head."""
        x_BLD, aux = self.stack(x_BLD, ctx)
        return (x_BLD if self.norm is None else self.norm(x_BLD)), under("stack", aux)

    def nll(self, hidden_BLD, targets_BL, weights_BL, smoothing: float = 0.0, z_loss: float = 0.0):
        """(sum of losses, {"nll", "correct"}) over weighted targets, without full logits."""
        return self.head.nll(hidden_BLD, self.embed, targets_BL, weights_BL, smoothing, z_loss)

    def logits(self, hidden_BLD) -> jax.Array:
        """logits_BLV in float32, over the real vocabulary."""
        return self.head.logits(hidden_BLD, self.embed)

    @property
    def longest(self) -> int | None:
        """The most positions that a row can have, None where there is no limit."""
        return getattr(self.embed.position, "longest", None)

    def cost(self, shape: Shape) -> Cost:
        """Layers and head; a look-up counts nothing."""
        return self.stack.cost(shape) + self.head.cost(shape, self.embed)


class DecoderModel(TokenModel):
    def start(self, batch: int, length: int, ctx: Context):
        """The decode state for up to `length` positions."""
        return self.stack.start(batch, length, ctx)

    @property
    def letters(self):
        """The letters of every array of the decode state."""
        return self.stack.letters

    def extend(self, tokens_BL: jax.Array, state, ctx: Context):
        """(hidden_BLD, state): prefill is one long call, decoding one position a call."""
        x_BLD, state = self.stack.extend(self.embed(tokens_BL, ctx), state, ctx)
        return (x_BLD if self.norm is None else self.norm(x_BLD)), state
