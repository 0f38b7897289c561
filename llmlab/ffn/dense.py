"""Feed-forwards that every position passes through: two matrices, or three with a gate (Shazeer, 2020)."""

from __future__ import annotations

import jax

from llmlab.axes import shard
from llmlab.config import config
from llmlab.cost import Cost, Shape, total
from llmlab.nn.activation import Activation, activate
from llmlab.nn.einsum import Einsum
from llmlab.nn.init import FanIn, Init
from llmlab.nn.module import Module
from llmlab.nn.parts import Context, FeedForward


@config
class Mlp(FeedForward):
    """down(activation(up(x)))."""

    hidden: int = 2048
    activation: Activation = "gelu_tanh"
    bias: Init | None = None
    init: Init = FanIn()
    out_init: Init = FanIn()

    def build(self, dims, rngs):
        return MlpLayer(self, {**dims, "F": self.hidden}, rngs)


class MlpLayer(Module):
    def __init__(self, cfg: Mlp, dims, rngs):
        self.cfg = cfg
        self.up = Einsum("BLD,DF->BLF", dims, rngs, cfg.init, cfg.bias)
        self.down = Einsum("BLF,FD->BLD", dims, rngs, cfg.out_init, cfg.bias)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        return self.down(shard(activate(self.cfg.activation, self.up(x_BLD)), "BLF")), {}

    def cost(self, shape: Shape) -> Cost:
        return self.up.cost(shape) + self.down.cost(shape)


@config
class Gated(FeedForward):
    """down(activation(gate(x)) * up(x)): SwiGLU with silu, GeGLU with gelu."""

    hidden: int = 1408
    activation: Activation = "silu"
    bias: Init | None = None
    init: Init = FanIn()
    out_init: Init = FanIn()

    def build(self, dims, rngs):
        return GatedLayer(self, {**dims, "F": self.hidden}, rngs)


class GatedLayer(Module):
    def __init__(self, cfg: Gated, dims, rngs):
        self.cfg = cfg
        self.gate = Einsum("BLD,DF->BLF", dims, rngs, cfg.init, cfg.bias)
        self.up = Einsum("BLD,DF->BLF", dims, rngs, cfg.init, cfg.bias)
        self.down = Einsum("BLF,FD->BLD", dims, rngs, cfg.out_init, cfg.bias)

    def __call__(self, x_BLD: jax.Array, ctx: Context):
        h_BLF = shard(activate(self.cfg.activation, self.gate(x_BLD), self.up(x_BLD)), "BLF")
        return self.down(h_BLF), {}

    def cost(self, shape: Shape) -> Cost:
        return total(part.cost(shape) for part in (self.gate, self.up, self.down))
