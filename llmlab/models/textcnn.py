"""Kim's convolutional classifier of sentences (2014): words, windows of several widths, the largest of each map.

The model here gives the maps at every position; `Pooled(trunk=TextCNN(), pooling=Max(), classes=..., dropout=0.5)` is
the paper's classifier. Left out: the second, fixed channel of word vectors, and the norm of 3 to which the paper cuts
the rows of the last layer after each step.

Letters of this file: J, the words of a window.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.mixers.conv import windows
from llmlab.models.decoder import Model
from llmlab.nn.activation import Activation, activate
from llmlab.nn.einsum import ZEROS, Einsum
from llmlab.nn.embed import Embedding
from llmlab.nn.init import FanIn, Init, Normal
from llmlab.nn.module import List, Module
from llmlab.nn.parts import Context, Declared


@config
class TextCNN(Model):
    """vocab: entries that are real. size: of a word's vector. widths: of the windows. maps: for each width.

    Position l has the windows that begin there, with zeros beyond the end of its document.
    """

    vocab: int = 256
    size: int = 300
    widths: tuple[int, ...] = (3, 4, 5)
    maps: int = 100
    activation: Activation = "relu"
    embed: Embedding = Embedding(init=Normal(std=0.1))
    bias: Init = ZEROS
    init: Init = FanIn()

    def check(self):
        if not self.widths or min(*self.widths, self.maps, self.size) < 1:
            raise ValueError(
                f"TextCNN: widths {self.widths}, maps {self.maps} and size {self.size} are 1 or more; "
                "there is at least one width"
            )

    width = property(lambda self: len(self.widths) * self.maps)

    def declared(self):
        return Declared(causal=False, decodable=False)

    def build(self, rngs):
        return TextCNNModel(self, rngs)


class TextCNNModel(Module):
    def __init__(self, cfg: TextCNN, rngs):
        self.cfg = cfg
        dims = {"V": cfg.vocab, "D": cfg.size, "C": cfg.maps, "N": 1}
        self.embed = cfg.embed.build(dims, rngs)
        convolution = lambda width: Einsum("BLJD,JDC->BLC", {**dims, "J": width}, rngs, cfg.init, cfg.bias)
        self.convs = List([convolution(width) for width in cfg.widths])

    def __call__(self, tokens_BL: jax.Array, ctx: Context):
        """(hidden_BLD, aux), where D is the number of all maps."""
        return self.body(self.embed(tokens_BL, ctx), ctx)

    def body(self, x_BLD: jax.Array, ctx: Context):
        """What stands behind the embedding."""
        longest = windows(x_BLD, 0, max(self.cfg.widths) - 1, ctx.segments_BL)
        maps = [conv(longest[:, :, : conv.w.shape[0]]) for conv in self.convs]
        return shard(activate(self.cfg.activation, jnp.concatenate(maps, axis=-1)), "BLD"), {}

    @property
    def longest(self) -> int | None:
        """The most positions that a row can have, None where there is no limit."""
        return getattr(self.embed.position, "longest", None)

    def cost(self, shape: Shape) -> Cost:
        return total(conv.cost(shape) for conv in self.convs)
